#pragma once
// Per-latent statistics over a data set, in one pass over codes: how often and how strongly each latent fires, the
// images that activate it most, and what their labels say. Memory is d_sae x (top + a few), whatever the number of
// images.
//
// The score of an image is the mean of the latent's activation over all of its tokens, CLS included (as PatchSAE takes
// it).

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <vector>

#include <psae/sparse/codes.hpp>

namespace psae {

struct latent_summary {
    std::size_t latents = 0, top = 0, images = 0, tokens = 0;
    std::vector<double> token_frequency;   // [d_sae] fraction of tokens with z > 0
    std::vector<double> mean_activation;   // [d_sae] mean over tokens with z > 0; NaN for latents that never fire
    std::vector<float> max_activation;     // [d_sae] 0 for latents that never fire
    std::vector<double> image_frequency;   // [d_sae] fraction of images with a score > 0
    std::vector<double> mean_image_score;  // [d_sae] mean score over images with a score > 0; NaN for none
    std::vector<std::int32_t> top_images;  // [d_sae, top] by score, descending, ties to the earlier image; -1 for none
    std::vector<float> top_values;         // [d_sae, top] 0 for none
    std::vector<double>
        label_entropy;  // [d_sae] -sum p ln p, p the share of the scores of the top images; NaN without labels
    std::vector<double> label_std;  // [d_sae] population standard deviation of their labels; NaN without labels
};

class latent_summary_builder {
public:
    latent_summary_builder(std::size_t latents, std::size_t top)
        : latents_(latents),
          top_(top),
          fired_(latents),
          sum_(latents),
          max_(latents),
          image_fired_(latents),
          image_sum_(latents),
          top_images_(latents * top, -1),
          top_values_(latents * top),
          score_(latents) {}

    // Codes of whole images in order: `tokens_per_image` tokens each.
    template <class T>
    void add(const codes_view<T>& z, std::size_t tokens_per_image) {
        for (std::size_t first = 0; first < z.tokens; first += tokens_per_image) {
            touched_.clear();
            for (std::size_t i = z.offsets[first]; i < z.offsets[first + tokens_per_image]; ++i) {
                const float value = static_cast<float>(z.value[i]);
                if (!(value > 0)) continue;
                const std::uint32_t f = z.latent[i];
                ++fired_[f];
                sum_[f] += value;
                max_[f] = std::max(max_[f], value);
                if (score_[f] == 0) touched_.push_back(f);
                score_[f] += value;
            }
            for (const std::uint32_t f : touched_) {
                const double score = score_[f] / static_cast<double>(tokens_per_image);
                score_[f] = 0;
                ++image_fired_[f];
                image_sum_[f] += score;
                insert(f, static_cast<float>(score));
            }
            ++images_;
            tokens_ += tokens_per_image;
        }
    }

    // labels: one per image added (or empty); images with label -1 are left out of the label statistics.
    latent_summary finish(const std::vector<std::int64_t>& labels) const {
        constexpr double nan = std::numeric_limits<double>::quiet_NaN();
        latent_summary s;
        s.latents = latents_;
        s.top = top_;
        s.images = images_;
        s.tokens = tokens_;
        s.max_activation = max_;
        s.top_images = top_images_;
        s.top_values = top_values_;
        for (std::size_t f = 0; f < latents_; ++f) {
            s.token_frequency.push_back(tokens_ == 0 ? 0 : double(fired_[f]) / double(tokens_));
            s.mean_activation.push_back(fired_[f] == 0 ? nan : sum_[f] / double(fired_[f]));
            s.image_frequency.push_back(images_ == 0 ? 0 : double(image_fired_[f]) / double(images_));
            s.mean_image_score.push_back(image_fired_[f] == 0 ? nan : image_sum_[f] / double(image_fired_[f]));
            double mass = 0, mean = 0, squares = 0;
            std::size_t count = 0;
            std::map<std::int64_t, double> mass_of_label;
            for (std::size_t j = 0; j < top_ && !labels.empty(); ++j) {
                const std::int32_t image = top_images_[f * top_ + j];
                if (image < 0 || labels[static_cast<std::size_t>(image)] < 0) continue;
                const std::int64_t label = labels[static_cast<std::size_t>(image)];
                const double value = static_cast<double>(top_values_[f * top_ + j]);
                mass_of_label[label] += value;
                mass += value;
                mean += double(label);
                squares += double(label) * double(label);
                ++count;
            }
            double entropy = 0;
            for (const auto& [label, m] : mass_of_label) entropy -= m / mass * std::log(m / mass);
            s.label_entropy.push_back(count == 0 ? nan : std::max(0.0, entropy));
            mean /= double(std::max<std::size_t>(count, 1));
            s.label_std.push_back(count == 0 ? nan : std::sqrt(std::max(0.0, squares / double(count) - mean * mean)));
        }
        return s;
    }

private:
    void insert(std::uint32_t f, float score) {
        float* values = top_values_.data() + f * top_;
        std::int32_t* images = top_images_.data() + f * top_;
        if (top_ == 0 || (images[top_ - 1] >= 0 && !(score > values[top_ - 1]))) return;
        std::size_t place = top_ - 1;
        while (place > 0 && (images[place - 1] < 0 || score > values[place - 1])) {
            values[place] = values[place - 1];
            images[place] = images[place - 1];
            --place;
        }
        values[place] = score;
        images[place] = static_cast<std::int32_t>(images_);
    }

    std::size_t latents_, top_, images_ = 0, tokens_ = 0;
    std::vector<std::uint64_t> fired_;
    std::vector<double> sum_;
    std::vector<float> max_;
    std::vector<std::uint64_t> image_fired_;
    std::vector<double> image_sum_;
    std::vector<std::int32_t> top_images_;
    std::vector<float> top_values_;
    std::vector<double> score_;
    std::vector<std::uint32_t> touched_;
};

}  // namespace psae
