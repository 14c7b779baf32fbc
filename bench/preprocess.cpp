// CLIP preprocessing on one core: decode, resize, crop, normalise. bench/peers/preprocess.py does the same with Pillow.
// The pictures are those of the folder in the environment variable PSAE_BENCH_IMAGES; bench/compare.sh makes them.
#include <cstdlib>

#include <benchmark/benchmark.h>

#include <psae/vit/preprocess.hpp>

using namespace psae;

namespace {

std::vector<std::filesystem::path> pictures(const char* extension) {
    std::vector<std::filesystem::path> paths;
    const char* folder = std::getenv("PSAE_BENCH_IMAGES");
    if (folder != nullptr && std::filesystem::is_directory(folder))
        for (const auto& entry : std::filesystem::directory_iterator(folder))
            if (entry.path().extension() == extension) paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    return paths;
}

// One iteration takes every picture once; the rate is pictures per second.
template <class Picture, class Work>
void run(benchmark::State& state, const std::vector<Picture>& pictures, const Work& work) {
    const preprocessing p;
    std::vector<float> pixels(3 * p.crop * p.crop);
    if (pictures.empty()) {
        state.SkipWithError("no pictures: set PSAE_BENCH_IMAGES, or run bench/compare.sh");
        return;
    }
    for (auto _ : state) {
        for (const Picture& picture : pictures) preprocess(work(picture), p, pixels.data());
        benchmark::DoNotOptimize(pixels.data());
    }
    state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations() * pictures.size()));
}

void from_files(benchmark::State& state, const char* extension) {
    run(state, pictures(extension), [](const std::filesystem::path& path) { return read_image(path); });
}
void from_decoded(benchmark::State& state) {
    std::vector<image> decoded;
    for (const auto& path : pictures(".jpg")) decoded.push_back(read_image(path));
    run(state, decoded, [](const image& picture) -> const image& { return picture; });
}

BENCHMARK_CAPTURE(from_files, jpeg, ".jpg")->Name("jpeg")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK_CAPTURE(from_files, png, ".png")->Name("png")->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(from_decoded)->Name("resize")->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
