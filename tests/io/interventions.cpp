// Interventions on a class's latents against the pipeline's reference, and against slow obvious references where it has
// no case; class-level latents of pictures and their file.
#include <catch2/catch.hpp>

#include <numeric>

#include <psae/io/class_latents_file.hpp>
#include <psae/io/model_comparison.hpp>
#include <psae/vit/read_preprocessing.hpp>

#include "../difference.hpp"
#include "../golden_models.hpp"
#include "../pipeline.hpp"
#include "../temporary_folder.hpp"

using namespace psae;

namespace {

using action = intervention::action;

constexpr std::size_t C = 4, F = 96, T = 17, d = 64, images = 24;
const std::vector<std::int32_t> of_label{0, 1, 2, 3};

// The pipeline's parts; `unit_mean` as of make_zero_shot_classifier.
struct experiment {
    cpu device;
    std::unique_ptr<vision_tower> tower = load_clip_vision(pipeline / "model", golden_vision{});
    zero_shot_classifier classifier;
    picture_reader pictures{read_image_list({pipeline / "images"}, {}),
                            read_preprocessing(pipeline / "model", tower->image_size()), alpha_mode::white,
                            [](const error& e) { throw e; }};
    sae_weights sae = pipeline_sae();
    std::size_t layer = tower->hidden_index(-2);

    explicit experiment(bool unit_mean = true) {
        classifier = make_zero_shot_classifier(
            device, load_clip_text(pipeline / "model", golden_text{}), {"cat", "tree", "red car", "house"},
            read_lines(std::filesystem::path(PSAE_DATA_DIR) / "imagenet_templates.txt"), [](std::size_t) {}, unit_mean);
    }
    class_latent_counts counts(class_count what) {
        class_latent_counter counter(C, F, what, 0.2);
        count_class_latents(device, *tower, pictures, of_label, sae, layer, counter);
        return std::move(counter).counts();
    }
    intervention_results run(std::span<const intervention> list, const intervention_options& options,
                             std::span<const std::int32_t> labels = of_label) {
        return run_interventions(device, *tower, classifier, pictures, labels, layer, sae, list, options);
    }
};

// The reference's pictures come interleaved by class, ours folder by folder.
std::size_t golden_row(std::size_t index) { return index % 6 * 4 + index / 6; }

// The reference's conditions behind no_sae.
std::vector<intervention> golden_conditions() {
    std::vector<intervention> list;
    for (const std::size_t k : {1, 2, 4, 8, 16})
        for (const action what : {action::keep, action::remove}) list.push_back({.what = what, .k = k});
    return list;
}

}  // namespace

TEST_CASE("counts, logits, predictions and accuracies of classes equal the reference's") {
    const std::string kind = GENERATE("reference", "corrected", "by_prediction");
    INFO(kind);
    experiment e(kind != "reference");
    const auto counts = e.counts(class_count::tokens);
    CHECK(counts.count == values<std::uint32_t>(read_npz(pipeline / "masking.npz", "cls_sae_cnt")));
    const auto list = golden_conditions();
    const latent_ranking rankings[] = {rank_latents(counts, 16)};
    // (The reference also adds a constant to all elements of the tokens. Every layer norm takes it off again.)
    intervention_options options{.rankings = rankings, .by_label = kind != "by_prediction"};
    const std::size_t n = list.size() + 1;
    std::vector<float> logits(n * images * C);
    std::vector<std::int64_t> predictions(n * images);
    options.each = [&](const intervened_picture& p) {
        const std::size_t row = golden_row(p.index);
        CHECK(p.label == std::int32_t(p.index / 6));
        for (std::size_t v = 0; v < n; ++v) {
            const auto own = v == 0 ? p.plain : p.logits.subspan((v - 1) * C, C);
            std::copy(own.begin(), own.end(), logits.begin() + std::ptrdiff_t((v * images + row) * C));
            predictions[v * images + row] = std::int64_t(best_classes(own, 1)[0]);
        }
    };
    const auto result = e.run(list, options);
    CHECK(relative_difference(logits, pipeline_array("masking.npz", "logits_" + kind)) < 5e-5);
    CHECK(predictions == values<std::int64_t>(read_npz(pipeline / "masking.npz", "predictions_" + kind)));
    const auto tpr = pipeline_array("masking.npz", "class_tpr_" + kind);
    for (std::size_t v = 0; v < n; ++v) {
        const auto& by_class = v == 0 ? result.plain_by_class : result.interventions[v - 1].by_class;
        for (std::size_t c = 0; c < C; ++c) CHECK(100 * by_class[c].top_1() == Approx(tpr[v * C + c]));
    }
    // Gained and lost are counted picture by picture.
    for (std::size_t v = 1; v < n; ++v) {
        std::size_t gained = 0, lost = 0, right = 0;
        for (std::size_t i = 0; i < images; ++i) {
            const bool before = predictions[i] == std::int64_t(i % 4),
                       now = predictions[v * images + i] == std::int64_t(i % 4);
            gained += now && !before, lost += before && !now, right += now;
        }
        CHECK(result.interventions[v - 1].gained == gained);
        CHECK(result.interventions[v - 1].lost == lost);
        CHECK(result.interventions[v - 1].accuracy.best == right);
        CHECK(result.interventions[v - 1].accuracy.pictures == images);
    }
    CHECK(result.plain.best == 24);
}

TEST_CASE("every kind of intervention equals dense codes that are edited and decoded by plain loops") {
    // Labels that are one off, so that the predicted class is another than the label's.
    const std::vector<std::int32_t> labels{1, 2, 3, 0};
    const bool by_label = GENERATE(false, true);
    experiment e;
    const auto counts = e.counts(class_count::images);
    const std::vector<latent_ranking> rankings{rank_latents(counts, 10), random_ranking(counts, 12, 5)};
    const std::vector<latent_value> values{{3, 4.0f}, {50, 0.0f}};
    std::vector<intervention> list{{.what = action::keep},
                                   {.what = action::remove},
                                   {.what = action::keep, .k = 10},
                                   {.what = action::remove, .k = 7, .error_term = true},
                                   {.what = action::keep, .k = 12, .ranking = 1, .error_term = true},
                                   {.what = action::remove, .k = 12, .ranking = 1},
                                   {.what = action::set, .values = values},
                                   {.what = action::set, .values = values, .error_term = true},
                                   {.what = action::keep, .error_term = true}};
    const auto x = pipeline_array("codes.npz", "tap"), z = pipeline_array("codes.npz", "codes"),
               x_hat = pipeline_array("codes.npz", "x_hat");
    std::vector<float> found(list.size() * images * C), plain(images * C);
    intervention_options options{.rankings = rankings, .by_label = by_label};
    options.each = [&](const intervened_picture& p) {
        const std::size_t row = golden_row(p.index);
        std::copy(p.plain.begin(), p.plain.end(), plain.data() + row * C);
        for (std::size_t v = 0; v < list.size(); ++v)
            std::copy_n(p.logits.data() + v * C, C, found.data() + (v * images + row) * C);
    };
    const auto result = e.run(list, options, labels);
    arena<> scratch;
    for (std::size_t v = 0; v < list.size(); ++v) {
        std::vector<float> tokens(images * T * d);
        for (std::size_t row = 0; row < images; ++row) {
            const std::size_t of = by_label ? std::size_t(labels[row % 4])
                                            : best_classes(std::span<const float>(plain).subspan(row * C, C), 1)[0];
            CHECK((of == row % 4) == !by_label);
            for (std::size_t t = row * T; t < (row + 1) * T; ++t) {
                std::vector<double> sum(e.sae.b_dec.begin(), e.sae.b_dec.end());
                for (std::size_t f = 0; f < F; ++f) {
                    double code = double(z[t * F + f]);
                    if (list[v].what == action::set) {
                        for (const auto& [latent, value] : values)
                            if (latent == f) code = double(value);
                    } else {
                        const auto own = rankings[list[v].ranking].of_class(of);
                        const auto end = list[v].k == intervention::all ? own.end() : own.begin() + long(list[v].k);
                        const bool among = list[v].k == intervention::all || std::find(own.begin(), end, f) != end;
                        if (among != (list[v].what == action::keep)) code = 0;
                    }
                    for (std::size_t c = 0; c < d; ++c) sum[c] += code * double(e.sae.W_dec[f * d + c]);
                }
                for (std::size_t c = 0; c < d; ++c) {
                    if (list[v].error_term) sum[c] += double(x[t * d + c]) - double(x_hat[t * d + c]);
                    tokens[t * d + c] = float(sum[c]);
                }
            }
        }
        const auto logits = logits_of_tokens(e.device, scratch, *e.tower, e.classifier, tokens.data(), images, e.layer);
        INFO("intervention " << v);
        CHECK(relative_difference(std::span<const float>(found).subspan(v * images * C, images * C), logits) < 5e-5);
    }
    // Keeping everything and what the SAE leaves over is the plain model; keeping all is its reconstruction.
    CHECK(relative_difference(std::span<const float>(found).last(images * C), plain) < 5e-5);
    const auto reconstructed = e.classifier.logits(pipeline_array("codes.npz", "image_embeds_with_sae"), images);
    CHECK(relative_difference(std::span<const float>(found).first(images * C), reconstructed) < 5e-5);
    CHECK(result.interventions.back().lost + result.interventions.back().gained == 0);
    // The plain model is right on no picture, if labels are one off.
    for (const auto& own : result.interventions) CHECK(own.gained == own.accuracy.best);
    CHECK(result.interventions[1].gained > 0);

    // An intervention on a picture depends neither on the others nor on the other pictures.
    std::vector<std::size_t> first(21);
    std::iota(first.begin(), first.end(), std::size_t{0});
    picture_reader some(select(e.pictures.list(), first), read_preprocessing(pipeline / "model", 32), alpha_mode::white,
                        [](const error& failure) { throw failure; });
    std::size_t seen = 0;
    options.each = [&](const intervened_picture& p) {
        INFO("picture " << p.index);
        CHECK(p.index == seen++);
        CHECK(relative_difference(
                  p.logits, std::span<const float>(found).subspan((4 * images + golden_row(p.index)) * C, C)) < 5e-5);
    };
    run_interventions(e.device, *e.tower, e.classifier, some, labels, e.layer, e.sae, std::span(list).subspan(4, 1),
                      options);
    CHECK(seen == 21);
}

TEST_CASE("interventions refuse what does not fit") {
    experiment e;
    const auto counts = e.counts(class_count::images);
    const latent_ranking rankings[] = {rank_latents(counts, 10)};
    const auto refuse = [&](const intervention& v, const char* text, std::span<const latent_ranking> r) {
        CHECK_THROWS_WITH(e.run(std::span(&v, 1), {.rankings = r}), Catch::Contains(text));
    };
    refuse({.k = 11}, "too short", rankings);
    refuse({.k = 5, .ranking = 1}, "too short", rankings);
    refuse({.k = 1}, "too short", {});
    const latent_value far[] = {{96, 1.0f}};
    refuse({.what = action::set, .values = far}, "0 to 95", rankings);
    latent_ranking other = rankings[0];
    other.latents[3] = 96;
    refuse({.k = 5}, "latents below 96", {&other, 1});
    other = rankings[0];
    other.classes = 3;
    refuse({.k = 5}, "expected 4 classes", {&other, 1});
    const intervention keep{.k = 5};
    const std::vector<std::int32_t> partly{0, 1, -1, 3}, beyond{0, 1, 2, 4};
    const auto run = [&](const std::vector<std::int32_t>& classes) {
        run_interventions(e.device, *e.tower, e.classifier, e.pictures, classes, e.layer, e.sae, std::span(&keep, 1),
                          {.rankings = rankings});
    };
    CHECK_THROWS_WITH(run(partly), Catch::Contains("has no class") && Catch::Contains("2_red_car"));
    CHECK_THROWS_WITH(run(beyond), Catch::Contains("below 4"));
    class_latent_counter counter(3, F);
    CHECK_THROWS_WITH(count_class_latents(e.device, *e.tower, e.pictures, of_label, e.sae, e.layer, counter),
                      Catch::Contains("below 3"));
    CHECK(with_class(e.pictures.list(), partly).files.size() == 18);
    e.sae.d_in = 32;
    CHECK_THROWS_WITH(run(of_label), Catch::Contains("d_in 32"));
}

TEST_CASE("class-level latents are read as they were written, and damaged files are refused") {
    const temporary_folder folder;
    const auto path = folder / "class_latents.npz";
    named_class_latents l{{}, {"cat", "M\xc3\xa4use, gro\xc3\x9f"}};
    l.counts.classes = 2, l.counts.latents = 3, l.counts.tokens_per_image = 17;
    l.counts.what = class_count::tokens, l.counts.tau = 0.125;
    l.counts.count = {5, 0, 17, 1, 0, 0}, l.counts.images = {1, 2};
    write_class_latents_npz(path, l);
    const auto read = read_class_latents_npz(path);
    CHECK(read.classes == l.classes);
    CHECK(read.counts.count == l.counts.count);
    CHECK(read.counts.images == l.counts.images);
    CHECK(read.counts.tau == 0.125);
    CHECK(read.counts.what == class_count::tokens);
    CHECK(read.counts.tokens_per_image == 17);
    CHECK(read_npz(path, "counts").type == element_type::u32);

    write_class_latents_csv(folder / "x.csv", l, rank_latents(l.counts, 3));
    const file_bytes bytes(folder / "x.csv");
    const auto rows = detail::parse_table({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, ',', "x.csv");
    REQUIRE(rows.size() == 4);  // only latents that fire
    CHECK(rows[1].second[0] == "cat");
    CHECK(rows[1].second[2] == "2");
    CHECK(rows[2].second[2] == "0");
    CHECK(std::stod(rows[2].second[5]) == Approx(5.0 / 6));
    CHECK(rows[3].second[0] == l.classes[1]);

    const auto damaged = [&](const auto& change) {
        auto arrays = read_npz(path);
        npz_writer npz(folder / "damaged.npz");
        change(arrays);
        for (const auto& [name, a] : arrays)
            if (name == "what") npz.add_bytes(name, a.strings[0]);
            else if (!a.strings.empty()) npz.add(name, a.strings);
            else if (a.type == element_type::f64) npz.add(name, values<double>(a).data(), a.shape);
            else npz.add(name, values<std::int64_t>(a).data(), a.shape);
        npz.close();
        try {
            read_class_latents_npz(folder / "damaged.npz");
        } catch (const error& e) {
            return std::string(e.what());
        }
        return std::string("was read");
    };
    using arrays = std::map<std::string, array>;
    const auto number = [](auto x) {
        array a{element_type_of<decltype(x)>(), {}, std::vector<std::byte>(sizeof x), {}};
        std::memcpy(a.data.data(), &x, sizeof x);
        return a;
    };
    CHECK_THAT(damaged([](arrays& a) { a.erase("images"); }), Catch::Contains("damaged.npz, array images"));
    CHECK_THAT(damaged([](arrays& a) { a["images"].shape = {1}, a["images"].data.resize(4); }),
               Catch::Contains("array images): expected [2], found [1]"));
    CHECK_THAT(damaged([](arrays& a) { a["counts"].shape = {6}; }), Catch::Contains("expected [classes, d_sae]"));
    CHECK_THAT(damaged([](arrays& a) {
                   a["counts"].shape = {0, 6}, a["counts"].data.clear();
               }),
               Catch::Contains("array counts"));
    CHECK_THAT(damaged([&](arrays& a) { a["tau"] = number(std::nan("")); }), Catch::Contains("array tau"));
    CHECK_THAT(damaged([&](arrays& a) { a["tokens_per_image"] = number(std::int64_t{0}); }),
               Catch::Contains("array tokens_per_image"));
    CHECK_THAT(damaged([&](arrays& a) { a["tokens_per_image"] = number(std::int64_t{16}); }),
               Catch::Contains("at most 16 for class 0, latent 2; found 17"));
    CHECK_THAT(damaged([](arrays& a) { a["classes"].strings.pop_back(), a["classes"].shape = {1}; }),
               Catch::Contains("array classes"));
    CHECK_THAT(damaged([](arrays& a) { a["what"].strings[0] = "pictures"; }), Catch::Contains("array what"));
    CHECK(damaged([](arrays&) {}) == "was read");
}

TEST_CASE("lists of latents of different lengths: a class with none keeps nothing, one with all keeps all") {
    experiment e;
    std::vector<std::uint32_t> all(F);
    std::iota(all.begin(), all.end(), 0u);
    const latent_ranking rankings[] = {ranking_of({all, {}, {5, 9}, {}}), ranking_of({{}, {}, {}, {}})};
    CHECK(rankings[0].top == F);
    CHECK(rankings[1].top == 0);
    std::vector<std::uint32_t> two{5, 9, latent_ranking::none};
    CHECK(std::equal(two.begin(), two.end(), rankings[0].of_class(2).begin()));
    const latent_ranking both = {C, 2, {5, 9, 5, 9, 5, 9, 5, 9}};
    const latent_ranking list[] = {rankings[0], rankings[1], both};
    const std::vector<intervention> interventions{
        {.k = F, .ranking = 0}, {.k = 0, .ranking = 1}, {}, {.what = action::remove}, {.k = 2, .ranking = 2}};
    std::size_t seen = 0;
    intervention_options options{.rankings = list, .by_label = true};
    options.each = [&](const intervened_picture& p) {
        const auto logits = [&](std::size_t v) { return p.logits.subspan(v * C, C); };
        const std::size_t same = p.label == 0 ? 2 : p.label == 2 ? 4 : 3;
        CHECK(relative_difference(logits(0), logits(same)) < 1e-6);
        CHECK(relative_difference(logits(1), logits(3)) < 1e-6);
        if (p.label != 0) CHECK(relative_difference(logits(0), logits(2)) > 1e-3);
        ++seen;
    };
    e.run(interventions, options);
    CHECK(seen == images);
}

TEST_CASE("latents that fire on pictures are those whose score is above tau") {
    experiment e;
    const auto fired =
        fired_latents(e.device, *e.tower, e.pictures, of_label, e.sae, e.layer, C, class_count::images, 0.2);
    CHECK(fired.counts.count == e.counts(class_count::images).count);
    const auto score = pipeline_array("statistics.npz", "image_score");
    for (std::size_t i = 0; i < images; ++i) {
        std::vector<std::uint32_t> expected;
        for (std::uint32_t f = 0; f < F; ++f)
            if (score[golden_row(i) * F + f] > 0.2f) expected.push_back(f);
        CHECK(fired.latents[i] == expected);
        CHECK(!expected.empty());
    }
    CHECK(jaccard_index(fired.latents[0], fired.latents[0]) == 1);
    const std::vector<std::uint32_t> a{1, 4, 6}, b{2, 4, 6, 7}, none;
    CHECK(jaccard_index(a, b) == 0.4);
    CHECK(jaccard_index(a, none) == 0);
}

TEST_CASE("sets of latents of two models, by class") {
    class_latent_counts base;
    base.classes = 2, base.latents = 6;
    base.images = {4, 4};
    base.count = {4, 3, 2, 1, 0, 0,  //
                  0, 0, 0, 0, 4, 1};
    auto adapted = base;
    adapted.count = {4, 0, 1, 0, 3, 2,  //
                     0, 0, 0, 0, 1, 0};
    const std::size_t ks[] = {2, 3};
    const auto sets = choose_sets(base, adapted, ks, latent_order::count, 7);
    const auto of = [&](const std::string& name, std::size_t k, std::size_t c) {
        for (const compared_set& s : sets.sets)
            if (s.name == name && s.k == k) {
                CHECK((s.what == action::remove) == (name == "new" || name == "random"));
                const auto latents = sets.rankings[s.ranking].of_class(c);
                std::vector<std::uint32_t> list(latents.begin(), latents.end());
                std::erase(list, latent_ranking::none);
                return list;
            }
        FAIL("no set " << name);
        return std::vector<std::uint32_t>{};
    };
    using list = std::vector<std::uint32_t>;
    CHECK(of("base", 2, 0) == list{0, 1});
    CHECK(of("adapted", 2, 0) == list{0, 4});
    CHECK(of("shared", 2, 0) == list{0});
    CHECK(of("base", 3, 0) == list{0, 1, 2});
    CHECK(of("adapted", 3, 1) == list{4});  // only one fires
    CHECK(of("shared", 3, 1) == list{4});
    CHECK(of("base_fired", 0, 0) == list{0, 1, 2, 3});
    CHECK(of("adapted_fired", 0, 0) == list{0, 2, 4, 5});
    CHECK(of("new", 0, 0) == list{4, 5});
    CHECK(of("new", 0, 1).empty());
    const auto drawn = of("random", 0, 0);
    CHECK(drawn.size() == 2);
    for (const auto f : drawn) CHECK(adapted.of_class(0)[f] > 0);
    const auto interventions = sets.interventions();
    REQUIRE(interventions.size() == 2 + 2 * sets.sets.size());
    CHECK((interventions[0].k == intervention::all && !interventions[0].error_term && interventions[1].error_term));
    CHECK(interventions[2].k == 2);
}
