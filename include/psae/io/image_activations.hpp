#pragma once
// Pictures of a list as a vision tower takes them, and the tokens of one of its layers as training rows.
//
//   psae::picture_reader pictures(list, how, psae::alpha_mode::white, [](const psae::error& e) { log(e.what()); });
//   psae::image_activations source(*tower, pictures, {layer}, device, seed);
//   psae::activation_stream stream(source, 4096, 4, true, seed);
//
//   psae::each_hooked(device, *tower, pictures, layers, 8,      // all pictures in order, stopped at each of the layers
//                     [&](arena<>& scratch, const psae::hooked_tokens& h) { ... }, [&](std::size_t done) { ... });

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <numeric>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include <psae/io/dataset.hpp>
#include <psae/sae/activation_stream.hpp>
#include <psae/sae/inference.hpp>
#include <psae/vit/clip_vision.hpp>
#include <psae/vit/preprocess.hpp>

namespace psae {

// Decodes and preprocesses pictures in parallel. A picture that cannot be read is reported once, however often it is
// asked for; a report that throws makes it an error.
class picture_reader {
public:
    using report = std::function<void(const error&)>;

    picture_reader(image_list list, const preprocessing& how, alpha_mode alpha, report unreadable)
        : list_(std::move(list)),
          how_(how),
          alpha_(alpha),
          report_(std::move(unreadable)),
          unreadable_(list_.files.size(), 0) {}

    const image_list& list() const { return list_; }
    std::size_t size() const { return list_.files.size(); }
    // Floats of one picture: 3 * S * S.
    std::size_t pixels() const { return 3 * how_.crop * how_.crop; }
    // Pictures found to be unreadable so far.
    std::size_t unreadable() const {
        return static_cast<std::size_t>(std::count(unreadable_.begin(), unreadable_.end(), 1));
    }

    // Pictures `which` of the list to out [which.size(), 3, S, S]; says which of them could be read.
    std::vector<char> read(const cpu& device, std::span<const std::size_t> which, float* out) {
        std::vector<char> good(which.size(), 0);
        std::vector<std::optional<error>> failures(which.size());
        std::vector<std::exception_ptr> others(which.size());
        device.parallel_for(which.size(), [&](std::size_t i) {
            if (unreadable_[which[i]]) return;
            try {
                preprocess(read_image(list_.files[which[i]], alpha_), how_, out + i * pixels());
                good[i] = 1;
            } catch (const error& e) {
                failures[i] = e;
            } catch (...) {
                others[i] = std::current_exception();
            }
        });
        for (std::size_t i = 0; i < which.size(); ++i) {
            if (others[i]) std::rethrow_exception(others[i]);
            if (failures[i] && !std::exchange(unreadable_[which[i]], 1)) report_(*failures[i]);
        }
        return good;
    }

    // All pictures in order, `batch` at a time: f(pixels [which.size(), 3, S, S], which, done). `which` are those that could
    // be read (it may be none), `done` is the number of pictures behind the batch.
    template <class F>
    void each_batch(const cpu& device, std::size_t batch, F&& f) {
        std::vector<float> out(batch * pixels());
        std::vector<std::size_t> which;
        for (std::size_t first = 0; first < size(); first += batch) {
            const std::size_t done = std::min(first + batch, size());
            which.resize(done - first);
            std::iota(which.begin(), which.end(), first);
            const auto good = read(device, which, out.data());
            std::size_t kept = 0;
            for (std::size_t i = 0; i < good.size(); ++i) {
                if (!good[i]) continue;
                if (kept != i) std::copy_n(out.data() + i * pixels(), pixels(), out.data() + kept * pixels());
                which[kept++] = which[i];
            }
            which.resize(kept);
            f(static_cast<const float*>(out.data()), std::span<const std::size_t>(which), done);
        }
    }

private:
    image_list list_;
    preprocessing how_;
    alpha_mode alpha_;
    report report_;
    std::vector<char> unreadable_;
};

// psae::error if the SAE's d_in is not the tower's width.
inline void require_fit(const vision_tower& tower, const sae_description& sae) {
    if (sae.d_in != tower.width())
        throw error(
            "SAE and model do not fit", tower.name(),
            "the SAE takes d_in " + std::to_string(sae.d_in) + ", the tokens have " + std::to_string(tower.width()));
}

// The class token and the patches [images, image_tokens(), width] of tokens [images, tokens(), width]: these if there are
// no prompts, which tell of the model more than of a picture; else a copy of the others in `memory`. SAEs are trained on
// these, and what is said of pictures counts these.
inline const float* tokens_of_images(const vision_tower& tower, const float* tokens, std::size_t images,
                                     std::vector<float>& memory) {
    if (tower.prompts() == 0) return tokens;
    const std::size_t own = tower.image_tokens() * tower.width(), all = tower.tokens() * tower.width();
    memory.resize(images * own);
    for (std::size_t i = 0; i < images; ++i) std::copy_n(tokens + i * all, own, memory.data() + i * own);
    return memory.data();
}

// The tokens [pictures.size(), T, width] of a batch of pictures at hidden state `layer`.
struct hooked_tokens {
    std::span<const std::size_t> pictures;  // their indices in the list
    std::size_t layer;
    const float* tokens;
    const float* there;  // in memory of the tower's device, if they are there, too
};

// Pictures `which` at each of the layers (ascending, at least one), which one pass of the tower reaches one after the
// other: at(hooked_tokens). tokens [which.size(), T, width]: where the pass was begun, to the first of the layers.
template <class F>
void each_hidden_state(const cpu& device, arena<>& scratch, const vision_tower& tower,
                       std::span<const std::size_t> which, std::span<const std::size_t> layers, float* tokens, F&& at) {
    const float* there = tower.finish(tokens);
    std::size_t reached = layers.front();
    for (const std::size_t layer : layers) {
        if (layer != reached) there = nullptr;
        tower.run(device, scratch, tokens, which.size(), std::exchange(reached, layer), layer);
        at(hooked_tokens{which, layer, tokens, there});
    }
}

// All pictures that can be read, in order, `batch` at a time: at(scratch, hooked_tokens) for each of the layers
// (ascending), from one pass of the tower; then progress(pictures behind the batch). What they put in place of the
// tokens goes on by vision_tower::run. The pass of a batch is begun before at() of the batch before it.
template <class F, class Progress>
void each_hooked(const cpu& device, const vision_tower& tower, picture_reader& pictures,
                 std::span<const std::size_t> layers, std::size_t batch, F&& at, Progress&& progress) {
    arena<> scratch;
    struct pass {
        std::vector<std::size_t> pictures;
        std::vector<float> tokens;
        std::size_t done = 0;
    } now, before;
    const auto finish = [&](pass& p) {
        if (!p.pictures.empty())
            each_hidden_state(device, scratch, tower, p.pictures, layers, p.tokens.data(),
                              [&](const hooked_tokens& h) { at(scratch, h); });
        progress(p.done);
    };
    pictures.each_batch(device, batch, [&](const float* pixels, std::span<const std::size_t> which, std::size_t done) {
        scratch.reset();
        now.pictures.assign(which.begin(), which.end());
        now.tokens.resize(batch * tower.tokens() * tower.width());
        now.done = done;
        if (!which.empty()) tower.begin(device, scratch, pixels, which.size(), layers.front(), now.tokens.data());
        if (before.done > 0) finish(before);
        std::swap(now, before);
    });
    if (before.done > 0) finish(before);
}

// A source for activation_stream: the tokens [T, layers * d] of every picture (without prompts, see tokens_of_images),
// pictures shuffled anew in each epoch. A row is a token at each of the layers, one after the other, from one pass of the
// tower. The place of an unreadable picture is taken by the next readable one of the list, so rows depend on the seed and
// the files alone.
class image_activations {
public:
    // Tokens of hidden states `layers`, ascending. Tower and pictures must outlive this.
    image_activations(const vision_tower& tower, picture_reader& pictures, std::vector<std::size_t> layers,
                      const cpu& device, std::uint64_t seed)
        : tower_(tower),
          pictures_(pictures),
          layers_(std::move(layers)),
          device_(device),
          seed_(seed),
          order_(pictures.size(), seed) {
        if (pictures.size() == 0) throw error("there are no pictures", "image activations");
    }

    std::size_t columns() const { return layers_.size() * tower_.width(); }
    std::size_t rows() const { return pictures_.size() * tower_.image_tokens(); }

    // Rows first .. first + count of the endless stream. out: [count, layers * d].
    void read(std::uint64_t first, std::size_t count, float* out) {
        const std::size_t T = tower_.image_tokens(), d = columns();
        for (std::size_t done = 0; done < count;) {
            const std::uint64_t position = (first + done) / T;
            // Passes are cut at fixed positions: what a product rounds may depend on how many pictures go through it, and a
            // run that starts in the middle must get the same rows.
            const std::uint64_t group = position / batch * batch;
            if (now_.first != group) {
                if (ahead_.first != group) begin_group(ahead_, group);
                now_.first = none;
                if (tower_.asynchronous()) begin_group(now_, group + batch);
                finish(ahead_);
                std::swap(now_, ahead_);
            }
            const std::size_t from = static_cast<std::size_t>(first + done - group * T);
            const std::size_t rows = std::min(batch * T - from, count - done);
            std::copy_n(now_.rows.data() + from * d, rows * d, out + done * d);
            done += rows;
        }
    }

    // Up to `count` rows drawn at random, equally many from each of up to `pictures` pictures. Returns
    // [n, layers * d].
    std::vector<float> sample(std::size_t count, std::size_t pictures = 128) {
        const std::size_t T = tower_.image_tokens(), d = columns();
        pictures = std::min({pictures, pictures_.size(), count});
        epoch_order order(pictures_.size(), ~seed_);
        random_stream random(~seed_);
        std::vector<float> rows;
        std::vector<std::size_t> tokens(T);
        for (std::size_t first = 0; first < pictures; first += batch) {
            std::vector<std::size_t> which(std::min(batch, pictures - first));
            for (std::size_t i = 0; i < which.size(); ++i) which[i] = order.at(first + i);
            begin(now_, which);
            finish(now_);
            for (std::size_t i = 0; i < which.size(); ++i) {
                const std::size_t share =
                    std::min(T, (first + i + 1) * count / pictures - (first + i) * count / pictures);
                std::iota(tokens.begin(), tokens.end(), std::size_t{0});
                shuffle(tokens, random);
                for (std::size_t j = 0; j < share; ++j) {
                    const float* row = now_.rows.data() + (i * T + tokens[j]) * d;
                    rows.insert(rows.end(), row, row + d);
                }
            }
        }
        ahead_.first = none;
        return rows;
    }

private:
    static constexpr std::size_t batch = 8;  // pictures of one forward pass

    // A pass of the tower: pictures and their rows [pictures, T, layers * d].
    struct pass {
        std::uint64_t first = none;  // the position of its first picture in the stream, if it is of that
        std::vector<std::size_t> which;
        std::vector<float> state, rows;
    };
    static constexpr std::uint64_t none = ~std::uint64_t{0};

    // Whether the tower's tokens are the rows.
    bool in_place() const { return layers_.size() == 1 && tower_.prompts() == 0; }
    float* tokens_of(pass& p) const { return in_place() ? p.rows.data() : p.state.data(); }

    void begin_group(pass& p, std::uint64_t first) {
        std::vector<std::size_t> which(batch);
        for (std::size_t i = 0; i < batch; ++i) which[i] = order_.at(first + i);
        begin(p, std::move(which));
        p.first = first;
    }
    void begin(pass& p, std::vector<std::size_t> which) {
        const std::size_t count = which.size(), pixels = pictures_.pixels();
        p.first = none;
        pixels_.resize(count * pixels);
        auto good = pictures_.read(device_, which, pixels_.data());
        for (std::size_t i = 0; i < count; ++i)
            for (std::size_t tried = 1; !good[i]; ++tried) {
                if (tried == pictures_.size())
                    throw error("no picture could be read", pictures_.list().files.front().string(),
                                std::to_string(tried) + " were tried");
                which[i] = (which[i] + 1) % pictures_.size();
                good[i] = pictures_.read(device_, {&which[i], 1}, pixels_.data() + i * pixels)[0];
            }
        p.which = std::move(which);
        p.rows.resize(count * tower_.image_tokens() * columns());
        if (!in_place()) p.state.resize(count * tower_.tokens() * tower_.width());
        scratch_.reset();
        tower_.begin(device_, scratch_, pixels_.data(), count, layers_.front(), tokens_of(p));
    }
    void finish(pass& p) {
        const std::size_t count = p.which.size(), rows = count * tower_.image_tokens(), d = tower_.width();
        std::size_t l = 0;
        each_hidden_state(device_, scratch_, tower_, p.which, layers_, tokens_of(p), [&](const hooked_tokens& h) {
            if (in_place()) return;
            const float* own = tokens_of_images(tower_, h.tokens, count, own_);
            for (std::size_t r = 0; r < rows; ++r) std::copy_n(own + r * d, d, p.rows.data() + r * columns() + l * d);
            ++l;
        });
    }

    const vision_tower& tower_;
    picture_reader& pictures_;
    std::vector<std::size_t> layers_;
    cpu device_;
    std::uint64_t seed_;
    epoch_order order_;
    arena<> scratch_;
    std::vector<float> pixels_, own_;
    pass now_, ahead_;  // the pass whose rows are read, and the one behind it, which an asynchronous tower has begun
};

}  // namespace psae
