#include "program.hpp"

namespace patchsae {

namespace {

struct state {
    common_options common;
    std::string model, text, out;
};

void run(const state& s, const CLI::App& sub) {
    prepare_folder_of(s.out);
    const auto model = load_text_model(s.model);
    const auto tokens = tokenize_file(model, s.text);
    psae::npz_writer out(s.out);
    out.add("ids", tokens.ids.data(), {tokens.texts(), tokens.context});
    out.close();
    save_configuration(sub, s.out);
    if (s.common.json)
        json_object{}
            .add("texts", tokens.texts())
            .add("context", tokens.context)
            .add("truncated", tokens.truncated.size())
            .add("out", s.out)
            .print();
    else
        fmt::print("{} texts of {} token ids, {} truncated: {}\n", tokens.texts(), tokens.context,
                   tokens.truncated.size(), s.out);
}

}  // namespace

psae::token_ids tokenize_file(const psae::clip_text_model& model, const std::string& path) {
    const psae::file_bytes bytes(path);
    std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // byte order mark
    std::vector<std::string> lines;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(text.find('\n', at), text.size());
        lines.emplace_back(text.substr(at, end - at));
        at = end + 1;
    }
    if (lines.empty()) throw psae::error("file holds no text", path, "expected a line for each text");
    psae::token_ids tokens;
    try {
        tokens = model.tokenize(lines);
    } catch (const psae::error& e) {
        throw psae::error("texts cannot be used", path, e.what());
    }
    for (const std::size_t i : tokens.truncated)
        report_line(fmt::format("patchsae: truncated to {} token ids: {}, line {}", tokens.context, path, i + 1));
    return tokens;
}

void add_tokenize(CLI::App& app) {
    auto* sub = add_command(app, "tokenize", "token ids [N,context] of texts, a line a text, padded",
                            "--model data/tiny-clip --text texts.txt --out ids.npz");
    auto s = std::make_shared<state>();
    s->common.add_to(*sub);
    sub->add_option("--model", s->model, "Hugging Face CLIP directory")->required();
    sub->add_option("--text", s->text, "text file, a line a text")->required();
    sub->add_option("--out", s->out, "the .npz to write")->required();
    sub->callback([s, sub] { run(*s, *sub); });
}

}  // namespace patchsae
