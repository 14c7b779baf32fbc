// An SAE from one format of the field to another.

#include "program.hpp"

namespace patchsae {

namespace {

namespace fs = std::filesystem;

struct state {
    common_options common;
    std::string from, to, out;
    bool fold = false;
};

// Beside what is converted, under its name and that of the format.
fs::path default_out(const fs::path& from, psae::sae_format found, psae::sae_format to) {
    fs::path source = fs::weakly_canonical(from);
    if (psae::is_directory_format(found)) source = psae::sae_directory(source);
    const std::string name = (fs::is_directory(source) ? source.filename() : source.stem()).string();
    return source.parent_path() / (name + "-" + psae::name_of(to) + (psae::is_directory_format(to) ? "" : ".pt"));
}

void run(state& s, const CLI::App& sub) {
    const auto to = static_cast<psae::sae_format>(
        std::find(std::begin(psae::sae_format_names), std::end(psae::sae_format_names), s.to) -
        std::begin(psae::sae_format_names));
    auto sae = load_sae(s.from);
    const auto found = *psae::sae_format_of(s.from);
    if (s.out.empty()) s.out = default_out(s.from, found, to).string();
    if (!psae::is_directory_format(to)) prepare_folder_of(s.out);
    if (s.fold) psae::fold_into(sae, to, s.from);
    psae::write_sae(s.out, sae, to);
    save_configuration(sub, s.out);
    json_object summary;
    summary.add("from", s.from)
        .add("from_format", psae::name_of(found))
        .add("format", psae::name_of(to))
        .add("architecture", sae.architecture)
        .add("d_in", sae.d_in)
        .add("d_sae", sae.d_sae)
        .add("out", s.out);
    if (s.common.json) summary.print();
    else
        fmt::print("{} {}, {} latents of width {}, from {} to {}: {}\n", sae.architecture,
                   sae.is_transcoder() ? "transcoder" : "SAE", sae.d_sae, sae.d_in, psae::name_of(found),
                   psae::name_of(to), s.out);
}

}  // namespace

void add_convert(CLI::App& app) {
    auto* sub = add_command(app, "convert", "an SAE from one format of the field to another",
                            "--from run --to dictionary_learning --out run-dictionary_learning");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    sub->add_option("--from", s->from, "SAE of any of the formats: directory or file")->required();
    sub->add_option("--to", s->to, "format to write")
        ->required()
        ->check(CLI::IsMember(
            std::vector<std::string>(std::begin(psae::sae_format_names), std::end(psae::sae_format_names))));
    sub->add_flag("--fold", s->fold,
                  "fold what the format has no word for into the weights, as far as that keeps the codes up to "
                  "rounding: whether the input is centred, norms of decoder rows");
    sub->add_option("--out", s->out,
                    "file (patchsae, saev) or directory to write (default: beside the SAE, NAME-FORMAT)");
    sub->callback([s, sub] { run(*s, *sub); });
}

}  // namespace patchsae
