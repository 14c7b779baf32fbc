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
#include <span>
#include <string>
#include <vector>

#include <psae/core/error.hpp>
#include <psae/sparse/codes.hpp>

namespace psae {

// All of it is [d_sae] or [d_sae, top]. PatchSAE calls image_frequency sae_sparsity and mean_image_score sae_mean_acts.
struct latent_summary {
    std::size_t latents = 0, top = 0, images = 0;
    std::vector<double> token_frequency;   // fraction of tokens with z > 0
    std::vector<double> mean_activation;   // mean over tokens with z > 0; 0 for latents that never fire
    std::vector<float> max_activation;     // 0 for latents that never fire
    std::vector<double> image_frequency;   // fraction of images with a score > 0
    std::vector<double> mean_image_score;  // mean score over images with a score > 0; NaN for none
    std::vector<std::int32_t> top_images;  // by score, descending, ties to the earlier image; -1 for none
    std::vector<float> top_values;         // their scores; 0 for none
    // Of the labels of the top images; images without a label do not count. The entropy -sum p ln p takes p, a label's
    // share of the scores; NaN where no top image has a label. The population standard deviation is NaN there, too,
    // but 0 for a latent that never fires.
    std::vector<double> label_entropy, label_std;
};

// The labels of a latent's top images: how many of those have it, and its share of the sum of their scores. The largest
// share first; shares add up to 1. Empty if none has a label.
struct label_share {
    std::int64_t label;
    std::size_t images;
    double share;
};
inline std::vector<label_share> label_shares(const latent_summary& s, std::size_t latent,
                                             std::span<const std::int64_t> labels) {
    std::map<std::int64_t, label_share> by_label;
    double sum = 0;
    for (std::size_t j = latent * s.top; j < (latent + 1) * s.top && !labels.empty(); ++j) {
        if (s.top_images[j] < 0) continue;
        const std::int64_t label = labels[static_cast<std::size_t>(s.top_images[j])];
        if (label < 0) continue;
        auto& l = by_label.try_emplace(label, label_share{label, 0, 0}).first->second;
        ++l.images;
        l.share += static_cast<double>(s.top_values[j]);
        sum += static_cast<double>(s.top_values[j]);
    }
    std::vector<label_share> shares;
    for (auto& [label, l] : by_label) {
        l.share /= sum;
        shares.push_back(l);
    }
    std::stable_sort(shares.begin(), shares.end(), [](const auto& a, const auto& b) { return a.share > b.share; });
    return shares;
}

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

    // Codes of whole images in order: `tokens_per_image` tokens each. psae::error if they have another number of
    // latents, or tokens that are no whole images.
    template <class T>
    void add(const codes_view<T>& z, std::size_t tokens_per_image) {
        if (z.latents != latents_ || tokens_per_image == 0 || z.tokens % tokens_per_image != 0)
            throw error("codes do not fit the summary", "latent_summary_builder::add",
                        "expected whole images of " + std::to_string(tokens_per_image) + " tokens and " +
                            std::to_string(latents_) + " latents, found " + std::to_string(z.tokens) + " tokens and " +
                            std::to_string(z.latents) + " latents");
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

    // labels: one per image added, -1 for none; or empty. psae::error for another number of labels.
    latent_summary finish(std::span<const std::int64_t> labels = {}) const {
        if (!labels.empty() && labels.size() != images_)
            throw error("labels do not fit the images", "latent_summary_builder::finish",
                        "expected " + std::to_string(images_) + ", found " + std::to_string(labels.size()));
        constexpr double nan = std::numeric_limits<double>::quiet_NaN();
        latent_summary s;
        s.latents = latents_;
        s.top = top_;
        s.images = images_;
        s.max_activation = max_;
        s.top_images = top_images_;
        s.top_values = top_values_;
        const auto ratio = [](double sum, std::uint64_t count, double otherwise) {
            return count == 0 ? otherwise : sum / double(count);
        };
        for (std::size_t f = 0; f < latents_; ++f) {
            s.token_frequency.push_back(ratio(double(fired_[f]), tokens_, 0));
            s.mean_activation.push_back(ratio(sum_[f], fired_[f], 0));
            s.image_frequency.push_back(ratio(double(image_fired_[f]), images_, 0));
            s.mean_image_score.push_back(ratio(image_sum_[f], image_fired_[f], nan));
            const auto shares = label_shares(s, f, labels);
            double entropy = 0, count = 0, mean = 0, squares = 0;
            for (const label_share& l : shares) {
                entropy -= l.share * std::log(l.share);
                count += double(l.images);
                mean += double(l.images) * double(l.label);
            }
            mean /= count;
            for (const label_share& l : shares)
                squares += double(l.images) * (double(l.label) - mean) * (double(l.label) - mean);
            s.label_entropy.push_back(count == 0 ? nan : std::max(0.0, entropy));
            s.label_std.push_back(fired_[f] == 0 ? 0 : std::sqrt(squares / count));
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

// The latents worth looking at first, at most `count`, best first. PatchSAE picks by eye, from ranges of frequency,
// mean activation and label entropy; this ranks by
//
//   (mean score of the five top images) * ln(1 / image_frequency) * (1/2 + sum p ln(p / q))
//
// strong on its top images, silent on most others, and with top images whose labels (p, their shares) are not those of
// all images (q). Without labels the last factor is the same for all. A first pass takes latents that fire on at least
// five images and on no more than a quarter of all, and of latents with mostly the same five top images only the best;
// a second pass fills up with what else fires.
inline std::vector<std::size_t> interesting_latents(const latent_summary& s, std::span<const std::int64_t> labels,
                                                    std::size_t count) {
    const std::size_t looked_at = std::min<std::size_t>(5, s.top);
    const auto images = [&](std::size_t f) {
        return std::span<const std::int32_t>(s.top_images.data() + f * s.top, looked_at);
    };
    std::map<std::int64_t, double> images_of_label;
    double labelled = 0;
    for (const std::int64_t label : labels)
        if (label >= 0) ++images_of_label[label], ++labelled;
    std::vector<double> rank(s.latents);
    std::vector<std::size_t> order;
    for (std::size_t f = 0; f < s.latents; ++f) {
        if (!(s.token_frequency[f] > 0)) continue;
        double strength = 0, unlike_all = 0;
        for (std::size_t j = 0; j < looked_at; ++j) strength += static_cast<double>(s.top_values[f * s.top + j]);
        for (const label_share& l : label_shares(s, f, labels))
            unlike_all += l.share * std::log(l.share * labelled / images_of_label.at(l.label));
        rank[f] = strength * -std::log(s.image_frequency[f]) * (0.5 + unlike_all);
        order.push_back(f);
    }
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return rank[a] > rank[b]; });
    std::vector<std::size_t> chosen;
    std::vector<char> taken(s.latents, 0);
    for (const bool first_pass : {true, false})
        for (const std::size_t f : order) {
            if (chosen.size() >= count) break;
            const auto mine = images(f);
            const auto nearly_same = [&](std::size_t g) {
                std::size_t common = 0;
                for (const std::int32_t image : images(g))
                    common += image >= 0 && std::find(mine.begin(), mine.end(), image) != mine.end();
                return 2 * common > looked_at;
            };
            if (taken[f] ||
                (first_pass && (s.image_frequency[f] > 0.25 || std::find(mine.begin(), mine.end(), -1) != mine.end() ||
                                std::any_of(chosen.begin(), chosen.end(), nearly_same))))
                continue;
            taken[f] = 1;
            chosen.push_back(f);
        }
    return chosen;
}

}  // namespace psae
