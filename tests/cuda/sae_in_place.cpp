// An SAE in a tower, both on the GPU: what is put in place of tokens and what follows is that of the CPU, with prompts
// and without, and tokens are not read from the host where they are on the GPU.
#include <array>
#include <memory>
#include <numeric>
#include <span>

#include <psae/cuda.hpp>
#include <psae/io/interventions.hpp>
#include <psae/io/sae_evaluation.hpp>
#include <psae/sae/device_sae.hpp>

#include "../attribution/owned_codes.hpp"
#include "../vit/random_weights.hpp"
#include "device.hpp"

using namespace psae;

namespace {

using action = codes_edit::action;

struct config : clip_vision_config<32, 8, 16, 3, 2, 32, 8> {
    static constexpr const char* name = "in place";
};
constexpr std::size_t d = config::width, F = 40, layer = 1;

std::vector<float> random_numbers(std::size_t count, std::uint64_t seed) {
    const auto x = random_tensor<float>(row{count}, seed);
    return {x.begin(), x.end()};
}
deep_prompts random_prompts(std::size_t count) {
    deep_prompts prompts{count, d, {}};
    for (std::uint64_t i = 0; count > 0 && i < config::layers; ++i)
        prompts.rows.push_back(random_numbers(count * d, 50 + i));
    return prompts;
}
sae_weights random_sae() {
    sae_weights sae;
    sae.d_in = d, sae.d_sae = F;
    sae.W_enc = random_numbers(F * d, 1);
    sae.b_enc = random_numbers(F, 2);
    sae.W_dec = random_numbers(F * d, 3);
    for (float& w : sae.W_dec) w /= 8;
    sae.b_dec = random_numbers(d, 4);
    return sae;
}
// From one layer to another, with a skip connection.
sae_weights random_transcoder() {
    sae_weights transcoder = random_sae();
    transcoder.centred_input = false;
    transcoder.d_out = d;
    transcoder.W_skip = random_numbers(d * d, 5);
    for (float& w : transcoder.W_skip) w /= 8;
    return transcoder;
}
// With nothing left that the CPU could use.
sae_view remote(const sae_weights& weights) {
    sae_view sae(weights);
    sae.remote = std::make_shared<remote_sae_on<psae::cuda>>(psae::cuda(), sae);
    sae.W_enc = sae.b_enc = sae.W_dec = sae.b_dec = nullptr;
    return sae;
}

// Towers of the same weights, the same SAE.
struct both {
    std::size_t prompts;
    clip_vision_tower<config> here{random_weights{}, random_prompts(prompts)};
    clip_vision_tower<config, psae::cuda> there{random_weights{}, random_prompts(prompts), psae::cuda()};
    sae_weights sae = random_sae();
    sae_view sae_there = remote(sae);
};

const latent_value listed[] = {{0, 1.5f}, {3, -2.0f}, {7, 0.0f}, {8, 0.25f}, {39, 1.0f}};

// Pictures of four classes.
picture_reader read_pictures() {
    const std::filesystem::path folders[] = {std::filesystem::path(PSAE_GOLDEN_DIR) / "pipeline" / "images"};
    const std::size_t some[] = {0, 3, 5, 7, 8, 10, 13, 16, 18, 20, 23};
    preprocessing how;
    how.shortest_edge = how.crop = config::image;
    return picture_reader(select(read_image_list(folders), some), how, alpha_mode::white,
                          [](const error& e) { throw e; });
}
zero_shot_classifier random_classifier() {
    return {{"a", "b", "c", "d"}, random_numbers(4 * config::projection, 9), 10, {}};
}
const std::vector<std::int32_t> of_label{0, 1, 2, 3};

}  // namespace

TEST_CASE("codes edited on the GPU are those of the CPU, also of some tokens among others") {
    constexpr std::size_t T = 9;
    random_stream random(11);
    std::vector<float> dense(T * F);
    for (float& v : dense) v = random.uniform() < 0.4f ? random.uniform() + 0.1f : 0.0f;
    std::fill_n(dense.begin() + 3 * F, F, 0.0f);  // a token without entries
    const owned_codes z(dense, T, F);
    const psae::cuda device;
    const auto offsets = on_device(device, z.offsets);
    const auto latent = on_device(device, z.latent);
    const auto value = on_device(device, z.value);
    const auto list = on_device(device, std::vector<latent_value>(std::begin(listed), std::end(listed)));
    const auto dense_of = [](const codes_view<float>& codes) {
        std::vector<float> sums(codes.tokens * F);
        for (std::size_t t = 0; t < codes.tokens; ++t)
            for (std::size_t i = codes.offsets[t]; i < codes.offsets[t + 1]; ++i) {
                CHECK((i == codes.offsets[t] || codes.latent[i] >= codes.latent[i - 1]));
                sums[t * F + codes.latent[i]] += codes.value[i];
            }
        return sums;
    };
    for (const auto& [first, count] : {std::array<std::size_t, 2>{0, T}, {2, 5}, {3, 1}, {4, 0}})
        for (const action what : {action::keep, action::remove, action::set})
            for (const std::size_t length : {std::size(listed), std::size_t{0}}) {
                INFO("tokens " << first << ", " << count << ", action " << int(what) << ", latents " << length);
                codes_view<float> here = z.view, there = z.view;
                here.tokens = there.tokens = count;
                there.room = z.latent.size();
                there.offsets = offsets.data() + first, there.latent = latent.data(), there.value = value.data();
                here.offsets += first;
                arena<> scratch;
                spoilt_arena memory(device);
                const auto expected = edit_codes(psae::cpu(), scratch, here, {what, {listed, length}}),
                           found = edit_codes(device, memory, there, {what, {list.data(), length}});
                CHECK(found.room >= expected.entries());
                CHECK(dense_of(detail::download_codes(device, scratch, found)) == dense_of(expected));
            }
}

TEST_CASE("versions of pictures with an SAE in place on the GPU have the embeddings of the CPU") {
    const std::size_t prompts = GENERATE(0, 2);
    both two{prompts};
    const std::size_t size = two.here.tokens() * d, images = 29;  // more than are encoded at once
    const cpu host(2);
    const auto tokens = random_numbers(images * size, 7);
    const auto here = put_in_place(host, two.here, layer, two.sae),
               there = put_in_place(host, two.there, layer, two.sae_there);
    const auto on_gpu = on_device(two.there.device(), tokens);
    const auto versions = [&](sae_in_place& in_place) {
        in_place.add(28);
        for (const std::size_t i : {0, 27, 28, 5})
            for (const bool error_term : {false, true})
                for (const action what : {action::keep, action::remove, action::set}) {
                    in_place.add(i, {what, listed}, error_term);
                    in_place.add(i, {what, {}}, error_term);
                }
        in_place.add(3);
        return in_place.embeddings();
    };
    here->take(tokens.data(), images);
    there->take(nullptr, images, on_gpu.data());
    const auto expected = versions(*here);
    CHECK(expected.size() == 50 * config::projection);
    CHECK(relative_difference(versions(*there), expected) < 1e-5);
    CHECK(there->embeddings().empty());
    there->take(tokens.data(), images);  // of the host alone
    CHECK(relative_difference(versions(*there), expected) < 1e-5);

    // What goes to the host; only what is to go on does so.
    arena<> scratch;
    std::vector<float> x_hat(size), x_hat_there(size);
    for (const std::size_t i : {2, 28}) {
        here->reconstruct(i, x_hat.data(), true);
        there->reconstruct(i, x_hat_there.data(), i == 28);
        CHECK(relative_difference(x_hat_there, x_hat) < 1e-6);
        const auto z = here->codes(scratch, i), z_there = there->codes(scratch, i);
        REQUIRE(z_there.tokens == z.tokens);
        REQUIRE(z_there.entries() == z.entries() - z.offsets[0]);
        CHECK(std::equal(z_there.latent, z_there.latent + z_there.entries(), z.latent + z.offsets[0]));
    }
    const auto embeds = here->embeddings();
    CHECK(relative_difference(there->embeddings(), std::span(embeds).last(config::projection)) < 1e-5);
}

TEST_CASE("a tower or an SAE that is not on the GPU has the other's arrays brought to it") {
    both two{0};
    const std::size_t size = two.here.tokens() * d;
    const cpu host(2);
    const auto tokens = random_numbers(2 * size, 7);
    std::vector<std::vector<float>> embeds;
    for (const vision_tower* tower :
         {static_cast<const vision_tower*>(&two.here), static_cast<const vision_tower*>(&two.there)})
        for (const sae_view& sae : {sae_view(two.sae), two.sae_there}) {
            const auto in_place = put_in_place(host, *tower, layer, sae);
            in_place->take(tokens.data(), 2);
            in_place->add(1, {action::remove, listed}, true);
            in_place->add(0);
            embeds.push_back(in_place->embeddings());
            CHECK(relative_difference(embeds.back(), embeds[0]) < 1e-5);
        }
}

TEST_CASE("towers take gradients along a path, and embeddings, of arrays of the host") {
    const std::size_t prompts = GENERATE(0, 2), first = prompts == 0 ? layer : 3;
    both two{prompts};
    const std::size_t size = two.here.tokens() * d;
    const cpu host(2);
    arena<> scratch;
    const auto end = random_numbers(size, 7), change = random_numbers(size, 8),
               direction = random_numbers(config::projection, 9);
    const std::vector<float> absent{0.25f, 0.5f, 1};
    std::vector<float> point(size), gradient(size), expected(size), embeds(config::projection);
    for (const float a : absent) {
        for (std::size_t i = 0; i < size; ++i) point[i] = end[i] - a * change[i];
        two.here.differentiate(host, scratch, point.data(), first, direction.data(), gradient.data());
        for (std::size_t i = 0; i < size; ++i) expected[i] += gradient[i] / 3;
    }
    point = end;
    two.here.run(host, scratch, point.data(), 1, first, config::layers);
    two.here.project(host, scratch, point.data(), 1, embeds.data(), true);
    for (const vision_tower* tower :
         {static_cast<const vision_tower*>(&two.here), static_cast<const vision_tower*>(&two.there)}) {
        tower->differentiate_path(host, scratch, end.data(), change.data(), absent, first, direction.data(),
                                  gradient.data());
        CHECK(relative_difference(gradient, expected) < 1e-5);
        point = end;
        std::vector<float> found(config::projection);
        tower->embeddings(host, scratch, point.data(), 1, first, found.data());
        CHECK(relative_difference(found, embeds) < 1e-5);
        if (prompts > 0)
            CHECK_THROWS_WITH(tower->differentiate_path(host, scratch, end.data(), change.data(), absent, 2,
                                                        direction.data(), gradient.data()),
                              Catch::Contains("gradient does not pass prompts"));
    }
}

TEST_CASE("a tower with prompts on the GPU has its passes under way, with the hidden states of the CPU") {
    both two{2};
    const std::size_t size = two.here.tokens() * d, pixels = 3 * config::image * config::image;
    const cpu host(2);
    arena<> scratch;
    CHECK(two.there.asynchronous());
    const auto pictures = random_numbers(5 * pixels, 6);
    std::vector<float> expected(5 * size), first(3 * size), second(2 * size);
    for (const std::size_t to : {0, 1, 2, 3}) {
        INFO("hidden state " << to);
        two.here.embed(host, scratch, pictures.data(), 5, expected.data());
        two.here.run(host, scratch, expected.data(), 5, 0, to);
        two.there.begin(host, scratch, pictures.data(), 3, to, first.data());
        two.there.begin(host, scratch, pictures.data() + 3 * pixels, 2, to, second.data());
        const auto check = [&](const float* there, const std::vector<float>& found, std::size_t from) {
            CHECK(relative_difference(found, std::span(expected).subspan(from, found.size())) < 1e-5);
            CHECK(on_host(two.there.device(), there, found.size()) == found);
        };
        check(two.there.finish(first.data()), first, 0);
        check(two.there.finish(second.data()), second, 3 * size);
    }
}

TEST_CASE("zero-shot accuracy, evaluations and interventions on the GPU are those of the CPU") {
    const std::size_t prompts = GENERATE(0, 2);
    both two{prompts};
    const cpu host(2);
    const auto classifier = random_classifier();
    struct results {
        std::vector<float> zero_shot, interventions, qualities, accuracies;
    };
    const sae_weights transcoder = random_transcoder();
    const auto results_of = [&](const vision_tower& tower, const sae_view& sae, const sae_view& transcoder) {
        results r;
        auto pictures = read_pictures();
        const auto add = [](std::vector<float>& to, std::span<const float> values) {
            to.insert(to.end(), values.begin(), values.end());
        };
        zero_shot_accuracy(host, tower, classifier, pictures, of_label, layer, sae, [&](const zero_shot_picture& p) {
            add(r.zero_shot, p.logits);
            add(r.zero_shot, p.logits_with_sae);
        });
        const latent_ranking rankings[] = {ranking_of({{1, 5, 3}, {2}, {}, {39, 0, 12, 4}})};
        const std::vector<intervention> list{{},
                                             {.what = action::keep, .k = 2},
                                             {.what = action::remove, .k = 4, .error_term = true},
                                             {.what = action::remove},
                                             {.what = action::set, .values = listed}};
        run_interventions(host, tower, classifier, pictures, of_label, layer, sae, list,
                          {.rankings = rankings, .each = [&](const intervened_picture& p) {
                               add(r.interventions, p.plain);
                               add(r.interventions, p.logits);
                           }});
        const std::vector<layer_sae> saes{{sae, layer}, {sae, 2}, {transcoder, layer, 2}};
        const auto evaluation = evaluate_saes(host, tower, pictures, saes,
                                              {.classifier = &classifier, .class_of_label = of_label, .top_images = 2});
        CHECK(evaluation.pictures == 11);
        const auto counts = [&](const accuracy_counts& c) {
            for (const std::size_t n : {c.pictures, c.best, c.among_five}) r.accuracies.push_back(float(n));
        };
        counts(evaluation.plain);
        for (const auto& s : evaluation.saes) {
            counts(s.accuracy);
            for (const double q : {s.quality.cls.nmse, s.quality.patches.mse, s.quality.l0, s.quality.dead_fraction})
                r.qualities.push_back(float(q));
        }
        return r;
    };
    const auto here = results_of(two.here, two.sae, transcoder),
               there = results_of(two.there, two.sae_there, remote(transcoder));
    CHECK(here.zero_shot.size() == 11 * 2 * 4);
    CHECK(here.interventions.size() == 11 * 6 * 4);
    CHECK(relative_difference(there.zero_shot, here.zero_shot) < 2e-5);
    CHECK(relative_difference(there.interventions, here.interventions) < 2e-5);
    CHECK(relative_difference(there.qualities, here.qualities) < 2e-5);
    CHECK(there.accuracies == here.accuracies);
}
