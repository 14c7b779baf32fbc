// The patchsae program: train sparse autoencoders on a CLIP ViT's tokens, find the concepts, show where they fire.

#include "program.hpp"

int main(int argc, char** argv) {
    CLI::App app{"Sparse autoencoders on vision transformers", "patchsae"};
    app.require_subcommand(1);
    patchsae::add_info(app);
    patchsae::add_preprocess(app);
    patchsae::add_embed(app);
    patchsae::add_train(app);
    patchsae::add_encode(app);
    patchsae::add_latents(app);
    patchsae::add_mask(app);
    try {
        app.parse(argc, argv);  // a subcommand runs as soon as it is parsed
        return 0;
    } catch (const CLI::Success& e) {
        return app.exit(e);
    } catch (const CLI::ParseError& e) {
        fmt::print(stderr, "patchsae: error: {}; see --help\n", e.what());
        return 2;
    } catch (const std::exception& e) {
        fmt::print(stderr, "patchsae: error: {}\n", e.what());
        return 1;
    }
}
