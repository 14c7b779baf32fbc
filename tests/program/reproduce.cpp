// The commands of docs/reproduce.md, as they stand there, on the golden model and pictures.
#include "adapted_model.hpp"

#include "../pipeline.hpp"

using namespace program;

namespace {

// The blocks of shell commands behind a heading.
std::string commands_below(const std::string& heading, const std::string& page) {
    std::string out;
    const std::string open = "```sh\n";
    std::size_t at = page.find("\n## " + heading);
    REQUIRE(at != page.npos);
    const std::size_t end = std::min(page.find("\n## ", at + 1), page.size());
    while ((at = page.find(open, at)) < end) {
        const std::size_t close = page.find("\n```", at);
        out += page.substr(at + open.size(), close - at - open.size()) + "\n";
        at = close;
    }
    return out;
}

// `from` must be there.
void replace(std::string& text, const std::string& from, const std::string& to) {
    const std::size_t at = text.find(from);
    INFO(from);
    REQUIRE(at != text.npos);
    text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("the commands that reproduce the paper run from end to end") {
    const temporary_folder work;
    fs::create_directory_symlink(pipeline / "model", work / "clip");
    fs::copy_file(pipeline / "sae.pt", work / "clip-vit-base-patch16_-2_resid_49152.pt");
    fs::copy(pipeline / "images", work / "train", fs::copy_options::recursive);
    fs::create_directories(work / "data");
    psae::write_text(work / "data/imagenet_classnames.txt",
                     "0_cat cat\n1_tree tree\n2_red_car red car\n3_house house\n");
    // Validation pictures lie in one folder; a table has their labels. Of the other set a table has the split.
    fs::create_directories(work / "val");
    std::string solution = "ImageId,PredictionString\n", pets = "path,label,split\n", parts[] = {pets, pets};
    std::size_t number = 0;
    for (const auto& label : fs::directory_iterator(pipeline / "images"))
        for (const auto& picture : fs::directory_iterator(label)) {
            const std::string name = "picture_" + std::to_string(number), folder_name = label.path().filename();
            fs::copy_file(picture, work / "val" / (name + ".JPEG"));
            solution += name + "," + folder_name + " 1 2 3 4\n";
            const std::string row =
                "val/" + name + ".JPEG," + folder_name.substr(2) + (number % 2 == 0 ? ",train\n" : ",test\n");
            pets += row;
            parts[folder_name >= "2"] += row;
            if (number++ == 0) fs::copy_file(picture, work / "photo.jpg");
        }
    psae::write_text(work / "LOC_val_solution.csv", solution);
    psae::write_text(work / "pets.csv", pets);
    psae::write_text(work / "pets_base.csv", parts[0]);
    psae::write_text(work / "pets_new.csv", parts[1]);
    write_adapter(work / "model.pth.tar-5", 1);

    const std::string page = read_text(data.parent_path() / "docs" / "reproduce.md");
    std::string tables = commands_below("Data sets", page), experiments = commands_below("The experiments", page);
    tables.resize(tables.find("\n\n") + 1);  // what comes then makes tables like pets.csv in Python
    replace(experiments, "--steps 20000 --batch-tokens 4096", "--steps 3 --batch-tokens 64");
    replace(experiments, "--patch 7,7", "--patch 3,3");  // the golden model has 4 x 4 patches
    psae::write_text(work / "script.sh",
                     "set -eu\npatchsae() { '" + std::string(PSAE_PROGRAM) + "' \"$@\"; }\n" + tables + experiments);
    const int code = std::system(("cd '" + work.path.string() + "' && sh script.sh > out.txt 2> err.txt").c_str());
    INFO(read_text(work / "err.txt"));
    REQUIRE(code == 0);

    CHECK(count_lines(read_text(work / "imagenet_val.csv")) == 25);
    const auto metrics = read_text(work / "sae/interventions/metrics.csv");
    CHECK(metrics.starts_with("latents,repeat,action,k,error_term,pictures,accuracy"));
    CHECK(metrics.find("\nnone,,,,,24,") != metrics.npos);
    CHECK(read_text(work / "pets/metrics.csv").find("\nnone,,,,,12,") != metrics.npos);
    for (const char* part : {"pets_base", "pets_new"}) {
        CHECK(count_lines(read_text(work / part / "classes.csv")) == 3);
        CHECK(read_text(work / part / "metrics.csv").find("\nadapted,none,,,,6,") != std::string::npos);
    }
    CHECK(fs::exists(work / "as_reference/accuracy.png"));
    CHECK(fs::exists(work / "masks/latent_1234.png"));
    const auto html = read_text(work / "sae/report.html");
    for (const char* part :
         {"<h2>Latents of the classes", "<h2>Interventions", "<h2>All latents", "<td>2_red_car</td>"})
        CHECK(html.find(part) != html.npos);
    CHECK(read_text(work / "out.txt").find("patchsae") != std::string::npos);  // info names the checkpoint's format
}
