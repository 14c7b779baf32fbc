// Attributions of logits on pictures against interventions that set single latents to 0, and against their own definitions.
#include <catch2/catch.hpp>

#include <cmath>
#include <memory>
#include <vector>

#include <psae/io/interventions.hpp>
#include <psae/io/logit_attributions.hpp>
#include <psae/vit/read_preprocessing.hpp>

#include "../difference.hpp"
#include "../golden_models.hpp"
#include "../pipeline.hpp"

using namespace psae;

namespace {

using choice = attribution_options::choice;

constexpr std::size_t C = 4, T = 17;
const std::vector<std::int32_t> of_label{0, 1, 2, 3};

struct experiment {
    cpu device{1};
    std::unique_ptr<vision_tower> tower = load_clip_vision(pipeline / "model", golden_vision{});
    zero_shot_classifier classifier = make_zero_shot_classifier(
        device, load_clip_text(pipeline / "model", golden_text{}), {"cat", "tree", "red car", "house"}, {"a {}."});
    picture_reader pictures{read_image_list({pipeline / "images"}, {.limit = 9}),
                            read_preprocessing(pipeline / "model", tower->image_size()), alpha_mode::white,
                            [](const error& e) { throw e; }};
    sae_weights weights = pipeline_sae();
    std::size_t layer = tower->hidden_index(-2);

    attribution_agreement run(const attribution_options& options,
                              const std::function<void(const attributed_picture&)>& each,
                              std::span<const std::int32_t> labels = of_label) {
        return attribute_pictures(device, *tower, classifier, pictures, labels, layer, weights, options, each);
    }
};

struct kept_picture {
    std::size_t of, against;
    std::vector<attributed_latent> strongest;
    std::vector<double> effects;
};

}  // namespace

TEST_CASE("effects of removal are what an intervention that sets the latent to 0 takes from the logit") {
    experiment e;
    const bool error_term = GENERATE(true, false);
    std::vector<kept_picture> kept;
    const auto agreement = e.run({.error_term = error_term, .top = 3}, [&](const attributed_picture& p) {
        CHECK(p.index == kept.size());
        CHECK(p.label == std::int32_t(p.index / 6));
        CHECK(p.of == best_classes(p.logits, 1)[0]);
        CHECK(p.z.tokens == T);
        if (error_term) CHECK(p.attribution.value == Approx(double(p.logits[p.of])).epsilon(1e-5));
        CHECK(p.against <= 3);
        CHECK(p.strongest.size() - p.against <= 3);
        for (std::size_t i = 0; i < p.strongest.size(); ++i) {
            const double own = p.strongest[i].attribution;
            CHECK((own > 0) == (i < p.against));
            if (i > 0 && i != p.against) CHECK(std::abs(own) <= std::abs(p.strongest[i - 1].attribution));
        }
        kept.push_back(
            {p.of, p.against, {p.strongest.begin(), p.strongest.end()}, {p.effects.begin(), p.effects.end()}});
    });
    REQUIRE(kept.size() == 9);
    CHECK(agreement.pictures == 9);

    // All latents that matter to some picture, one intervention each, and the one that changes nothing.
    std::vector<latent_value> values;
    for (const auto& k : kept)
        for (const auto& l : k.strongest) values.push_back({l.latent, 0});
    std::vector<intervention> list{{.what = intervention::action::keep, .error_term = error_term}};
    for (const auto& v : values)
        list.push_back({.what = intervention::action::set, .values = {&v, 1}, .error_term = error_term});
    std::size_t picture = 0, first = 1, compared = 0;
    double worst = 0, largest = 0;
    run_interventions(e.device, *e.tower, e.classifier, e.pictures, of_label, e.layer, e.weights, list,
                      {.each = [&](const intervened_picture& p) {
                          const kept_picture& k = kept[picture++];
                          for (std::size_t i = 0; i < k.strongest.size(); ++i, ++compared) {
                              const double effect = double(p.logits[k.of]) - double(p.logits[(first + i) * C + k.of]);
                              worst = worse(worst, std::abs(effect - k.effects[i]));
                              largest = std::max(largest, std::abs(effect));
                          }
                          first += k.strongest.size();
                      }});
    CHECK(compared == agreement.effect.size());
    CHECK(compared > 30);
    CHECK(largest > 0.1);
    CHECK(worst < 2e-5 * double(e.classifier.scale));  // what logits are rounded to

    // The agreement's numbers, from the pairs.
    std::vector<double> a, b;
    double same = 0;
    for (const auto& k : kept)
        for (std::size_t i = 0; i < k.strongest.size(); ++i) {
            a.push_back(k.strongest[i].attribution);
            b.push_back(k.effects[i]);
            same += a.back() * b.back() > 0;
        }
    CHECK(agreement.attribution == a);
    CHECK(agreement.effect == b);
    CHECK(agreement.same_sign() == Approx(same / double(a.size())));
    CHECK(agreement.correlation() > 0.8);
}

TEST_CASE("a correlation, a share of signs, and nothing to compare") {
    attribution_agreement a;
    a.attribution = {1, 2, 3, -2};
    a.effect = {2, 4, 6, -4};
    a.missing = 1, a.change = 4;
    CHECK(a.correlation() == Approx(1));
    CHECK(a.same_sign() == 1);
    CHECK(a.completeness_error() == 0.25);
    a.effect = {3, -1, 1, -3};
    // Means 1 and 0; sums of squares 14 and 20, of products 0 - 1 + 2 + 9.
    CHECK(a.correlation() == Approx(10 / std::sqrt(14.0 * 20)));
    CHECK(a.same_sign() == 0.75);
    CHECK(std::isnan(attribution_agreement{}.correlation()));
}

TEST_CASE("which class is explained, and against which") {
    experiment e;
    attribution_options options{.steps = 2, .top = 1};
    std::size_t seen = 0;
    options.by = choice::label;
    e.run(options, [&](const attributed_picture& p) { seen += p.of == std::size_t(p.label); });
    CHECK(seen == 9);

    options.by = choice::given;
    options.given = 2;
    options.against = {attribution_options::all_others};
    e.run(options, [&](const attributed_picture& p) {
        CHECK(p.of == 2);
        const double others = (double(p.logits[0]) + double(p.logits[1]) + double(p.logits[3])) / 3;
        CHECK(p.attribution.value == Approx(double(p.logits[2]) - others).margin(1e-4));
    });
    options.against = {1};
    e.run(options, [&](const attributed_picture& p) {
        CHECK(p.attribution.value == Approx(double(p.logits[2]) - double(p.logits[1])).margin(1e-4));
    });

    // Integrated gradients account for more than the gradient alone.
    options = {.top = 1};
    const double gradient = e.run(options, [](const auto&) {}).completeness_error();
    options.steps = 16;
    const double integrated = e.run(options, [](const auto&) {}).completeness_error();
    CAPTURE(gradient, integrated);
    CHECK(integrated < gradient / 10);
}

TEST_CASE("attributions refuse classes that are not there and pictures without one") {
    experiment e;
    const auto ignore = [](const attributed_picture&) {};
    attribution_options options{.top = 1};
    options.by = choice::given;
    options.given = C;
    CHECK_THROWS_WITH(e.run(options, ignore), Catch::Contains("0 to 3"));
    options.given = 0;
    options.against = {C};
    CHECK_THROWS_WITH(e.run(options, ignore), Catch::Contains("0 to 3"));
    options = {.top = 1};
    options.by = choice::label;
    const std::vector<std::int32_t> none{0, -1, 2, 3};
    CHECK_THROWS_WITH(e.run(options, ignore, none), Catch::Contains("picture has no class"));
    e.weights.d_out = e.weights.d_in;
    CHECK_THROWS_WITH(e.run({}, ignore), Catch::Contains("transcoder"));
}
