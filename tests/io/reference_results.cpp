// The reference's result files.
#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <limits>

#include <psae/io/reference_results.hpp>

#include "../temporary_folder.hpp"

using namespace psae;

namespace {

const std::filesystem::path formats = std::filesystem::path(PSAE_GOLDEN_DIR) / "formats";

void check_equal(const std::vector<double>& got, const array& expected) {
    const auto want = values<double>(expected);
    REQUIRE(got.size() == want.size());
    for (std::size_t i = 0; i < got.size(); ++i)
        CHECK((got[i] == want[i] || (std::isnan(got[i]) && std::isnan(want[i]))));
}

}  // namespace

TEST_CASE("the reference's results are read, dead latents included") {
    const auto want = read_npz(formats / "reference_results.expected.npz");
    CHECK(is_reference_results(formats / "reference_results"));
    CHECK_FALSE(is_reference_results(formats));
    const auto r = read_reference_results(formats / "reference_results");
    CHECK(r.summary.latents == 12);
    CHECK(r.summary.top == 10);
    check_equal(r.summary.image_frequency, want.at("sae_sparsity"));
    check_equal(r.summary.mean_image_score, want.at("sae_mean_acts"));
    check_equal(r.summary.label_entropy, want.at("top_entropy"));
    CHECK(std::count_if(r.summary.mean_image_score.begin(), r.summary.mean_image_score.end(),
                        [](double x) { return std::isnan(x); }) > 0);
    CHECK(r.summary.top_values == to_floats(want.at("max_activating_image_values")));
    const auto indices = values<std::int32_t>(want.at("max_activating_image_indices"));
    const auto labels = values<std::int64_t>(want.at("max_activating_image_label_indices"));
    std::size_t live = 0;
    for (std::size_t i = 0; i < indices.size(); ++i) {
        const bool is_live = r.summary.top_values[i] > 0;
        live += is_live;
        CHECK(r.summary.top_images[i] == (is_live ? indices[i] : -1));
        CHECK(r.top_labels[i] == (is_live ? labels[i] : -1));
    }
    CHECK(live > 50);
    CHECK(r.classes == 3);
    CHECK(r.class_counts == values<double>(want.at("cls_sae_cnt")));
}

TEST_CASE("results that do not fit together are refused by file") {
    const temporary_folder work;
    const auto folder = work / "results";
    reference_results read;
    const auto refused = [&](const char* name, std::vector<std::size_t> shape, std::vector<float> values) {
        std::filesystem::remove_all(folder);
        std::filesystem::copy(formats / "reference_results", folder);
        std::filesystem::permissions(folder / name, std::filesystem::perms::owner_all);
        if (shape.empty()) std::filesystem::remove(folder / name);
        else write_torch(folder / name, to_write("", shape, values.data()));
        try {
            read = read_reference_results(folder);
        } catch (const error& e) {
            CHECK(std::string(e.what()).find(name) != std::string::npos);
            return true;
        }
        return false;
    };
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const auto filled = [](std::size_t count, float value) { return std::vector<float>(count, value); };
    CHECK_FALSE(refused("sae_sparsity.pt", {12}, filled(12, 0.5f)));
    auto values = filled(120, 0.5f);
    values[3] = 0;
    CHECK_FALSE(refused("max_activating_image_values.pt", {12, 10}, values));
    CHECK(std::count(read.summary.top_images.begin(), read.summary.top_images.end(), -1) == 1);
    CHECK(read.summary.top_images[3] == -1);  // the index of a value of 0 means nothing
    CHECK(read.top_labels[3] == -1);
    CHECK(refused("sae_sparsity.pt", {12}, filled(12, 1.5f)));
    CHECK(refused("sae_sparsity.pt", {12}, filled(12, nan)));
    CHECK(refused("sae_sparsity.pt", {11}, filled(11, 0.5f)));
    CHECK(refused("sae_sparsity.pt", {}, {}));
    CHECK(refused("sae_mean_acts.pt", {12}, filled(12, -1)));
    CHECK(refused("top_entropy.pt", {12}, filled(12, -1)));
    CHECK(refused("max_activating_image_values.pt", {12, 10}, filled(120, nan)));
    CHECK(refused("max_activating_image_indices.pt", {12, 10}, filled(120, 1.5f)));
    CHECK(refused("max_activating_image_indices.pt", {12, 10}, filled(120, -1)));
    CHECK(refused("max_activating_image_label_indices.pt", {10, 12}, filled(120, 1)));
}
