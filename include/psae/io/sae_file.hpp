#pragma once
// Trained SAEs on disk, in the formats of the field: PatchSAE's and saev's checkpoints (.pt files); the directories of
// SAELens (what training runs write), sparsify and dictionary_learning. In memory W_enc is [d_sae, d_in].
//
//   const psae::sae_weights sae = psae::read_sae("run");               // whatever its format
//   psae::write_sae("other", sae, psae::sae_format::dictionary_learning);
//
// What is read is written back exactly, as float32. What a format cannot express is an error, not left out.

#include <psae/io/dictionary_learning_file.hpp>
#include <psae/io/saelens_file.hpp>
#include <psae/io/saev_file.hpp>
#include <psae/io/sparsify_file.hpp>

namespace psae {

namespace detail {

// f(format) with the struct of the format.
template <class F>
auto with_format(sae_format format, F&& f) {
    switch (format) {
        case sae_format::patchsae:
            return f(patchsae_format{});
        case sae_format::saev:
            return f(saev_format{});
        case sae_format::sparsify:
            return f(sparsify_format{});
        case sae_format::dictionary_learning:
            return f(dictionary_learning_format{});
        default:
            return f(saelens_format{});
    }
}

}  // namespace detail

// The format of an SAE that is given as its directory or as a file of it; nothing if it is none. psae::error for a
// damaged torch file.
inline std::optional<sae_format> sae_format_of(const std::filesystem::path& given) {
    if (!std::filesystem::exists(given)) return std::nullopt;
    for (std::size_t i = 0; i < std::size(sae_format_names); ++i)
        if (const auto format = static_cast<sae_format>(i);
            detail::with_format(format, [&](auto f) { return f.recognise(given); }))
            return format;
    return std::nullopt;
}

// Whether an SAE of the format is a directory; else it is a file.
inline bool is_directory_format(sae_format format) {
    return detail::with_format(format, [](auto f) { return f.is_directory; });
}

// psae::error for what is no SAE, architectures and options that are not supported, and weights that are missing,
// misshapen or not finite.
inline sae_weights read_sae(const std::filesystem::path& given) {
    const auto format = sae_format_of(given);
    if (!format)
        throw error(std::filesystem::exists(given) ? "not an SAE" : "there is no SAE", given.string(),
                    "expected a directory with cfg.json and sae_weights.safetensors, one of sparsify or of "
                    "dictionary_learning, or a checkpoint of PatchSAE or saev");
    return detail::with_format(*format, [&](auto f) { return f.read(given); });
}

// Writes to a directory, or to a file where the format is one. An activation_scale s is folded into the weights, which
// become s W_enc, W_dec / s and b_dec / s; of a transcoder, whose output has a scale t, s W_enc, W_dec / t, b_dec / t and
// W_skip s / t. psae::error, before anything is written, if the format cannot express the SAE, or the directory holds
// one of another format.
inline void write_sae(const std::filesystem::path& path, const sae_view& sae, sae_format format = sae_format::saelens) {
    if (const auto found = sae_format_of(path); found && *found != format && std::filesystem::is_directory(path))
        throw error("directory holds an SAE of another format", path.string(),
                    std::string("expected ") + name_of(format) + ", found " + name_of(*found),
                    "name another directory");
    sae_view s = sae;
    std::vector<float> W_enc, W_dec, b_dec;
    if (s.activation_scale != 1 || s.output_scale() != 1) {
        const auto scale = static_cast<float>(s.activation_scale), out = static_cast<float>(s.output_scale());
        W_enc.assign(s.W_enc, s.W_enc + s.d_sae * s.d_in);
        W_dec.assign(s.W_dec, s.W_dec + s.d_sae * s.outputs());
        b_dec.assign(s.b_dec, s.b_dec + s.outputs());
        for (float& w : W_enc) w *= scale;
        for (float& w : W_dec) w /= out;
        for (float& b : b_dec) b /= out;
        for (float& w : s.W_skip) w *= scale / out;
        s.W_enc = W_enc.data();
        s.W_dec = W_dec.data();
        s.b_dec = b_dec.data();
        s.activation_scale = s.target_scale = 1;
    }
    detail::with_format(format, [&](auto f) { f.write(path, s); });
}

// The same in SAELens' layout for an SAE trained on hidden state `layer` of the model in the directory `model`, a
// transcoder to its hidden state `target_layer`; nobody knows where `model` is empty.
inline void write_sae(const std::filesystem::path& directory, sae_view s, const std::string& model, long layer,
                      std::optional<long> target_layer = {}) {
    s.origin = {};
    if (!model.empty()) s.origin = {std::filesystem::absolute(model).string(), layer, {}, target_layer};
    write_sae(directory, s);
}

// Makes of an SAE one that the format can express, as far as that lies in the norms of decoder rows by which codes are
// rescaled, or in whether the input is centred: both go into the weights. The codes are the same up to rounding.
inline void fold_into(sae_weights& sae, sae_format format, const std::string& where = {}) {
    detail::with_format(format, [&](auto f) {
        if (sae.rescaled && !f.has_rescaling) fold_decoder_norms(sae, where);
        if (const auto centred = f.centring(sae)) fold_centring(sae, *centred);
    });
}

}  // namespace psae
