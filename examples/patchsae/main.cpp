// The patchsae program: train sparse autoencoders on a CLIP ViT's tokens, find the concepts, show where they fire.

#include <new>

#include "program.hpp"

int main(int argc, char** argv) {
    CLI::App app{"Sparse autoencoders on vision transformers", "patchsae"};
    app.set_version_flag("--version", PSAE_VERSION);
    app.require_subcommand(1);
    patchsae::add_info(app);
    patchsae::add_preprocess(app);
    patchsae::add_tokenize(app);
    patchsae::add_embed(app);
    patchsae::add_cache(app);
    patchsae::add_train(app);
    patchsae::add_encode(app);
    patchsae::add_evaluate(app);
    patchsae::add_latents(app);
    patchsae::add_mask(app);
    patchsae::add_classes(app);
    patchsae::add_classify(app);
    patchsae::add_intervene(app);
    patchsae::add_compare(app);
    patchsae::add_attribute(app);
    patchsae::add_report(app);
    patchsae::add_convert(app);
    patchsae::check_counts(app);
    const auto fail = [](int code, const std::string& text) {
        patchsae::report_line("patchsae: error: " + text);
        return code;
    };
    try {
        patchsae::catch_signals();
        if (argc > 1 && argv[1][0] != '-' &&
            app.get_subcommands([&](auto* s) { return s->get_name() == argv[1]; }).empty())
            throw CLI::ValidationError("there is no command " + std::string(argv[1]));
        auto arguments = patchsae::with_configuration(app, {argv + 1, argv + argc});
        std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants them
        app.parse(std::move(arguments));                   // a subcommand runs as soon as it is parsed
        return 0;
    } catch (const CLI::Success& e) {
        return app.exit(e);
    } catch (const CLI::ParseError& e) {
        return fail(2, std::string(e.what()) + "; see patchsae --help");
    } catch (const patchsae::interruption&) {
        fmt::print(stderr, "patchsae: interrupted\n");
        return 130;
    } catch (const std::bad_alloc&) {
        return fail(1, "out of memory");
    } catch (const std::filesystem::filesystem_error& e) {
        return fail(1, psae::error("file or folder cannot be used", e.path1().string(), e.code().message()).what());
    } catch (const std::exception& e) {
        return fail(1, e.what());
    }
}
