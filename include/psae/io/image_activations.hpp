#pragma once
// Pictures of a list as a vision tower takes them, and the tokens of one of its layers as training rows.
//
//   psae::picture_reader pictures(list, how, psae::alpha_mode::white, [](const psae::error& e) { log(e.what()); });
//   psae::image_activations source(*tower, pictures, {layer}, device, seed);
//   psae::activation_stream stream(source, 4096, 4, true, seed);
//
//   psae::each_hooked(device, *tower, pictures, layers,         // all pictures in order, stopped at each of the layers
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

// Who preprocesses pictures: their reader on the CPU, or the tower where it computes. The numbers are the same.
enum class preprocessed_by { reader, tower };

// Pictures of a list on their way to a tower: as pixels or, where it preprocesses them, as decoded.
struct picture_batch {
    std::vector<std::size_t> indices;  // in the list
    std::vector<float> pixels;         // [indices.size(), 3, S, S], or
    std::vector<image> decoded;        // [indices.size()]
};

// Decodes and preprocesses pictures in parallel. A picture that cannot be read is reported once, however often it is
// asked for; a report that throws makes it an error.
class picture_reader {
public:
    using report = std::function<void(const error&)>;

    picture_reader(image_list list, const preprocessing& how, alpha_mode alpha, report unreadable,
                   preprocessed_by by = preprocessed_by::reader)
        : list_(std::move(list)),
          how_(how),
          alpha_(alpha),
          report_(std::move(unreadable)),
          by_(by),
          unreadable_(list_.files.size(), 0) {}

    const image_list& list() const { return list_; }
    const preprocessing& how() const { return how_; }
    preprocessed_by by() const { return by_; }
    std::size_t size() const { return list_.files.size(); }
    // Floats of one picture: 3 * S * S.
    std::size_t pixels() const { return 3 * how_.crop * how_.crop; }
    // Pictures found to be unreadable so far.
    std::size_t unreadable() const {
        return static_cast<std::size_t>(std::count(unreadable_.begin(), unreadable_.end(), 1));
    }

    // Those of the pictures `which` of the list that can be read.
    void read(const cpu& device, std::span<const std::size_t> which, picture_batch& to) {
        resize(to, which.size());
        const auto good = read_all(device, which, to, 0);
        to.indices.clear();
        for (std::size_t i = 0; i < which.size(); ++i) {
            if (!good[i]) continue;
            const std::size_t place = to.indices.size();
            to.indices.push_back(which[i]);
            if (place == i) continue;
            if (by_ == preprocessed_by::tower) to.decoded[place] = std::move(to.decoded[i]);
            else std::copy_n(to.pixels.data() + i * pixels(), pixels(), to.pixels.data() + place * pixels());
        }
        resize(to, to.indices.size());
    }
    // All of them; the place of one that cannot be read is taken by the next one of the list that can. psae::error if
    // there is none.
    void read_in_place(const cpu& device, std::vector<std::size_t> which, picture_batch& to) {
        resize(to, which.size());
        auto good = read_all(device, which, to, 0);
        for (std::size_t i = 0; i < which.size(); ++i)
            for (std::size_t tried = 1; !good[i]; ++tried) {
                if (tried == size())
                    throw error("no picture could be read", list_.files.front().string(),
                                std::to_string(tried) + " were tried");
                which[i] = (which[i] + 1) % size();
                good[i] = read_all(device, {&which[i], 1}, to, i)[0];
            }
        to.indices = std::move(which);
    }

private:
    void resize(picture_batch& to, std::size_t count) const {
        if (by_ == preprocessed_by::tower) to.decoded.resize(count);
        else to.pixels.resize(count * pixels());
    }
    // Pictures `which` to the places from `first` on; says which of them could be read.
    std::vector<char> read_all(const cpu& device, std::span<const std::size_t> which, picture_batch& to,
                               std::size_t first) {
        std::vector<char> good(which.size(), 0);
        std::vector<std::optional<error>> failures(which.size());
        std::vector<std::exception_ptr> others(which.size());
        device.parallel_for(which.size(), [&](std::size_t i) {
            if (unreadable_[which[i]]) return;
            try {
                image picture = read_image(list_.files[which[i]], alpha_);
                if (by_ == preprocessed_by::tower) to.decoded[first + i] = std::move(picture);
                else preprocess(picture, how_, to.pixels.data() + (first + i) * pixels());
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

    image_list list_;
    preprocessing how_;
    alpha_mode alpha_;
    report report_;
    preprocessed_by by_;
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
    // In memory of the tower's device, if they are there, too: what works on them is waited for before the next batch.
    const float* there;
};

// Passes of a tower over pictures, to one of its layers. An asynchronous tower has begun the next one when one is
// finished.
class picture_passes {
public:
    struct pass {
        std::uint64_t first = none;         // which pass it is
        std::vector<std::size_t> pictures;  // that go through it: indices in the list
        std::vector<float> tokens;          // [pictures.size(), T, width]
        const float* there = nullptr;       // as vision_tower::finish says
    };
    static constexpr std::uint64_t none = ~std::uint64_t{0};

    // Tower and pictures must outlive this.
    picture_passes(const cpu& device, const vision_tower& tower, picture_reader& pictures, std::size_t layer)
        : device_(device), tower_(tower), pictures_(pictures), layer_(layer) {}

    arena<>& scratch() { return scratch_; }

    // The pass `first`, valid until the next call. `next` is the one that will be asked for behind it, or none.
    // read(first, picture_batch): the pictures of a pass.
    template <class Read>
    pass& finished(std::uint64_t first, std::uint64_t next, const Read& read) {
        if (ahead_.first != first) begin(ahead_, first, read);
        now_.first = none;
        if (tower_.asynchronous() && next != none) begin(now_, next, read);
        if (!ahead_.pictures.empty()) ahead_.there = tower_.finish(ahead_.tokens.data());
        std::swap(now_, ahead_);
        return now_;
    }
    // The same of those that can be read of the pictures from `first` on, as many as go through the tower at a time;
    // next: where the following pass will begin.
    pass& finished(std::size_t first, std::size_t next) {
        return finished(first, next < pictures_.size() ? next : none, [&](std::size_t from, picture_batch& to) {
            std::vector<std::size_t> which(std::min(tower_.pictures_of_pass(), pictures_.size() - from));
            std::iota(which.begin(), which.end(), from);
            pictures_.read(device_, which, to);
        });
    }
    // Others have used the tower: what was begun may not be there.
    void forget() { ahead_.first = none; }

private:
    template <class Read>
    void begin(pass& p, std::uint64_t first, const Read& read) {
        p.first = none;
        p.there = nullptr;
        read(first, batch_);
        p.pictures = batch_.indices;
        const std::size_t count = p.pictures.size();
        p.tokens.resize(count * tower_.tokens() * tower_.width());
        scratch_.reset();
        if (count > 0 && pictures_.by() == preprocessed_by::tower)
            tower_.begin(device_, scratch_, std::span<const image>(batch_.decoded), pictures_.how(), layer_,
                         p.tokens.data());
        else if (count > 0) tower_.begin(device_, scratch_, batch_.pixels.data(), count, layer_, p.tokens.data());
        p.first = first;
    }

    cpu device_;
    const vision_tower& tower_;
    picture_reader& pictures_;
    std::size_t layer_;
    arena<> scratch_;
    picture_batch batch_;
    pass now_, ahead_;
};

// A pass at each of the layers (ascending, at least one, of which the pass is at the first), which are reached one after
// the other: at(hooked_tokens).
template <class F>
void each_hidden_state(const cpu& device, arena<>& scratch, const vision_tower& tower, picture_passes::pass& pass,
                       std::span<const std::size_t> layers, F&& at) {
    float* tokens = pass.tokens.data();
    const float* there = pass.there;
    std::size_t reached = layers.front();
    for (const std::size_t layer : layers) {
        if (layer != reached) there = nullptr;
        tower.run(device, scratch, tokens, pass.pictures.size(), std::exchange(reached, layer), layer);
        at(hooked_tokens{pass.pictures, layer, tokens, there});
    }
}

// All pictures that can be read, in order, as many at a time as go through the tower: at(scratch, hooked_tokens) for each
// of the layers (ascending), from one pass; then progress(pictures behind it). What they put in place of the tokens goes
// on by vision_tower::run.
template <class F, class Progress>
void each_hooked(const cpu& device, const vision_tower& tower, picture_reader& pictures,
                 std::span<const std::size_t> layers, F&& at, Progress&& progress) {
    picture_passes passes(device, tower, pictures, layers.front());
    for (std::size_t first = 0, end; first < pictures.size(); first = end) {
        end = std::min(first + tower.pictures_of_pass(), pictures.size());
        auto& pass = passes.finished(first, end);
        if (!pass.pictures.empty())
            each_hidden_state(device, passes.scratch(), tower, pass, layers,
                              [&](const hooked_tokens& h) { at(passes.scratch(), h); });
        progress(end);
    }
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
          order_(pictures.size(), seed),
          passes_(device, tower, pictures, layers_.front()) {
        if (pictures.size() == 0) throw error("there are no pictures", "image activations");
    }

    std::size_t columns() const { return layers_.size() * tower_.width(); }
    std::size_t rows() const { return pictures_.size() * tower_.image_tokens(); }

    // Rows first .. first + count of the endless stream. out: [count, layers * d].
    void read(std::uint64_t first, std::size_t count, float* out) {
        const std::size_t T = tower_.image_tokens(), d = columns(), batch = tower_.pictures_of_pass();
        for (std::size_t done = 0; done < count;) {
            const std::uint64_t position = (first + done) / T;
            // Passes are cut at fixed positions: what a product rounds may depend on how many pictures go through it, and a
            // run that starts in the middle must get the same rows.
            const std::uint64_t group = position / batch * batch;
            if (group_ != group) {
                group_ = picture_passes::none;
                now_ =
                    rows_of(passes_, passes_.finished(group, group + batch, [&](std::uint64_t at, picture_batch& to) {
                        read_pass(order_, at, batch, to);
                    }));
                group_ = group;
            }
            const std::size_t from = static_cast<std::size_t>(first + done - group * T);
            const std::size_t rows = std::min(batch * T - from, count - done);
            std::copy_n(now_ + from * d, rows * d, out + done * d);
            done += rows;
        }
    }

    // Up to `count` rows drawn at random, equally many from each of up to `pictures` pictures. Returns
    // [n, layers * d].
    std::vector<float> sample(std::size_t count, std::size_t pictures = 128) {
        const std::size_t T = tower_.image_tokens(), d = columns(), batch = tower_.pictures_of_pass();
        pictures = std::min({pictures, pictures_.size(), count});
        epoch_order order(pictures_.size(), ~seed_);
        random_stream random(~seed_);
        std::vector<float> rows;
        std::vector<std::size_t> tokens(T);
        picture_passes passes(device_, tower_, pictures_, layers_.front());
        for (std::size_t first = 0, end; first < pictures; first = end) {
            end = std::min(first + batch, pictures);
            auto& pass = passes.finished(first, picture_passes::none, [&](std::uint64_t at, picture_batch& to) {
                read_pass(order, at, end - first, to);
            });
            const float* own = rows_of(passes, pass);
            for (std::size_t i = first; i < end; ++i) {
                const std::size_t share = std::min(T, (i + 1) * count / pictures - i * count / pictures);
                std::iota(tokens.begin(), tokens.end(), std::size_t{0});
                shuffle(tokens, random);
                for (std::size_t j = 0; j < share; ++j) {
                    const float* row = own + ((i - first) * T + tokens[j]) * d;
                    rows.insert(rows.end(), row, row + d);
                }
            }
        }
        passes_.forget();
        group_ = picture_passes::none;
        return rows;
    }

private:
    // Pictures first .. first + count of an order.
    void read_pass(epoch_order& order, std::uint64_t first, std::size_t count, picture_batch& to) {
        std::vector<std::size_t> which(count);
        for (std::size_t i = 0; i < count; ++i) which[i] = order.at(first + i);
        pictures_.read_in_place(device_, std::move(which), to);
    }
    // The rows [pictures, T, layers * d] of a pass: its tokens themselves, or rows_.
    const float* rows_of(picture_passes& passes, picture_passes::pass& pass) {
        if (layers_.size() == 1 && tower_.prompts() == 0) return pass.tokens.data();
        const std::size_t count = pass.pictures.size(), rows = count * tower_.image_tokens(), d = tower_.width();
        rows_.resize(rows * columns());
        std::size_t l = 0;
        each_hidden_state(device_, passes.scratch(), tower_, pass, layers_, [&](const hooked_tokens& h) {
            const float* own = tokens_of_images(tower_, h.tokens, count, own_);
            for (std::size_t r = 0; r < rows; ++r) std::copy_n(own + r * d, d, rows_.data() + r * columns() + l * d);
            ++l;
        });
        return rows_.data();
    }

    const vision_tower& tower_;
    picture_reader& pictures_;
    std::vector<std::size_t> layers_;
    cpu device_;
    std::uint64_t seed_;
    epoch_order order_;
    picture_passes passes_;
    std::vector<float> rows_, own_;
    std::uint64_t group_ = picture_passes::none;  // the position of the first picture of the pass whose rows are `now_`
    const float* now_ = nullptr;
};

}  // namespace psae
