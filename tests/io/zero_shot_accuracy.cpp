// Zero-shot accuracy with and without the reconstruction in place, against the pipeline's reference.
#include <catch2/catch.hpp>

#include <psae/io/zero_shot_accuracy.hpp>
#include <psae/vit/read_preprocessing.hpp>

#include "../difference.hpp"
#include "../golden_models.hpp"
#include "../pipeline.hpp"

using namespace psae;

TEST_CASE("zero-shot logits of pictures, plain and with the reconstruction in place, equal the reference's") {
    const cpu device;
    const auto tower = load_clip_vision(pipeline / "model", golden_vision{});
    const auto text = load_clip_text(pipeline / "model", golden_text{});
    const auto list = read_image_list({pipeline / "images"}, {});
    const auto classes = name_classes({"0_cat\tcat", "1_tree\ttree", "2_red_car\tred car", "3_house\thouse"},
                                      list.class_names, "classes");
    const auto classifier = make_zero_shot_classifier(
        device, text, classes.names, read_lines(std::filesystem::path(PSAE_DATA_DIR) / "imagenet_templates.txt"));
    picture_reader pictures(list, read_preprocessing(pipeline / "model", tower->image_size()), alpha_mode::white,
                            [](const error& e) { throw e; });
    auto sae = pipeline_sae();
    // The reference's pictures come interleaved by class, ours folder by folder: picture i of class c is its 4 i + c.
    std::vector<float> plain(24 * 4), with_sae(24 * 4);
    const auto result = zero_shot_accuracy(
        device, *tower, classifier, pictures, classes.of_label, tower->hidden_index(-2), sae_view(sae),
        [&](const zero_shot_picture& p) {
            const std::size_t row = p.index % 6 * 4 + p.index / 6;
            CHECK(p.label == std::int32_t(p.index / 6));
            std::copy(p.logits.begin(), p.logits.end(), plain.begin() + std::ptrdiff_t(row * 4));
            std::copy(p.logits_with_sae.begin(), p.logits_with_sae.end(), with_sae.begin() + std::ptrdiff_t(row * 4));
        });
    CHECK(result.pictures == 24);
    CHECK(result.plain.pictures == 24);
    CHECK(result.plain.best == 24);
    const auto expected = pipeline_array("masking.npz", "logits_corrected");
    CHECK(relative_difference(plain, std::span(expected).first(24 * 4)) < 5e-5);
    const auto embeds = classifier.logits(pipeline_array("codes.npz", "image_embeds_with_sae"), 24);
    CHECK(relative_difference(with_sae, embeds) < 5e-5);
    CHECK(relative_difference(plain, with_sae) > 1e-3);
    std::size_t right = 0;
    for (std::size_t i = 0; i < 24; ++i)
        right += best_classes(std::span<const float>(embeds).subspan(i * 4, 4), 1)[0] == i % 4;
    CHECK(result.with_sae.best == right);
    CHECK(result.with_sae.among_five == 24);

    const auto without = zero_shot_accuracy(device, *tower, classifier, pictures, classes.of_label, 2);
    CHECK(without.plain.best == 24);
    CHECK(without.with_sae.pictures == 0);
    CHECK_THROWS_WITH(zero_shot_accuracy(device, *tower, classifier, pictures, std::vector<std::int32_t>{0, 1, 2}, 2),
                      Catch::Contains("each of 4 labels"));
    CHECK_THROWS_WITH(
        zero_shot_accuracy(device, *tower, classifier, pictures, std::vector<std::int32_t>{0, 1, 2, 4}, 2),
        Catch::Contains("below 4"));
    sae.d_in = 32;
    CHECK_THROWS_WITH(zero_shot_accuracy(device, *tower, classifier, pictures, classes.of_label, 2, sae_view(sae)),
                      Catch::Contains("d_in 32") && Catch::Contains("64"));
}

TEST_CASE("labels without a class and pictures that cannot be read are not counted as wrong") {
    CHECK(best_classes(std::vector<float>{1, 3, 2, 3}, 3) == std::vector<std::size_t>{1, 3, 2});
    CHECK(best_classes(std::vector<float>{1, 3}, 5).size() == 2);
    accuracy_counts counts;
    counts.add(std::vector<float>{1, 2, 0}, -1);
    CHECK(counts.pictures == 0);
    CHECK(counts.top_1() == 0);
    counts.add(std::vector<float>{1, 2, 0}, 1);
    counts.add(std::vector<float>{9, 8, 7, 6, 5, 4}, 5);
    CHECK(counts.top_1() == 0.5);
    CHECK(counts.top_5() == 0.5);
}
