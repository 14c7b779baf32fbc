#pragma once
// Runs the built program as a script would: arguments in, exit code, stdout and stderr out.

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>

#include <psae/io/json.hpp>
#include <psae/io/numpy.hpp>

#include "../difference.hpp"
#include "../temporary_folder.hpp"

namespace program {

namespace fs = std::filesystem;

inline const fs::path golden = PSAE_GOLDEN_DIR, data = PSAE_DATA_DIR;

#ifdef __SANITIZE_ADDRESS__
inline constexpr bool sanitized = true;
#else
inline constexpr bool sanitized = false;
#endif

inline std::string read_text(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}
inline std::size_t count_lines(const std::string& text) {
    return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

struct result {
    int code = -1;  // exit code; 128 + the signal that ended it
    std::string out, err;
    rapidjson::Document json() const { return psae::parse_json(out, "stdout"); }
};

struct limits {
    std::size_t memory_bytes = 0;        // of address space; 0: any
    std::function<int()> signal_when{};  // asked every millisecond; a number is sent to the program, once
};

inline result run(const std::vector<std::string>& arguments, const limits& limit = {}) {
    const temporary_folder output;
    std::vector<std::string> command{PSAE_PROGRAM};
    command.insert(command.end(), arguments.begin(), arguments.end());
    std::vector<char*> argv;
    for (auto& a : command) argv.push_back(a.data());
    argv.push_back(nullptr);
    const std::string out = (output / "out").string(), err = (output / "err").string();
    const pid_t child = fork();
    if (child == 0) {
        const auto redirect = [](const char* path, int to) {
            dup2(open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600), to);
        };
        redirect(out.c_str(), 1);
        redirect(err.c_str(), 2);
        // (AddressSanitizer reserves terabytes of addresses and has a limit of its own, see tests/CMakeLists.txt.)
        if (limit.memory_bytes > 0 && !sanitized) {
            const rlimit bytes{limit.memory_bytes, limit.memory_bytes};
            setrlimit(RLIMIT_AS, &bytes);
        }
        execv(argv[0], argv.data());
        _exit(127);
    }
    // No test waits for a program that does not end.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(100);
    int status = 0;
    bool sent = false;
    while (waitpid(child, &status, WNOHANG) == 0) {
        const int signal = limit.signal_when && !sent ? limit.signal_when() : 0;
        if (signal != 0) kill(child, signal), sent = true;
        if (std::chrono::steady_clock::now() > deadline) kill(child, SIGKILL);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_text(out), read_text(err)};
}

// The program must end well.
inline result run_well(const std::vector<std::string>& arguments) {
    result r = run(arguments);
    INFO(r.err);
    REQUIRE(r.code == 0);
    return r;
}

// Refused: exit code, nothing on stdout, and the last line of stderr is the one error.
inline std::string refused(const std::vector<std::string>& arguments, int code = 1, const limits& limit = {}) {
    const result r = run(arguments, limit);
    INFO(r.err);
    CHECK(r.code == code);
    CHECK(r.out.empty());
    CHECK(count_lines(r.err) == 1);
    CHECK(r.err.starts_with("patchsae: error: "));
    return r.err;
}

inline std::vector<float> floats(const fs::path& npz, const std::string& name) {
    return psae::to_floats(psae::read_npz(npz, name));
}
inline std::vector<std::string> strings(const fs::path& npz, const std::string& name) {
    return psae::read_npz(npz, name).strings;
}
inline void write_npz(const fs::path& path, const std::string& name, const std::vector<float>& x,
                      const std::vector<std::size_t>& shape) {
    psae::npz_writer out(path);
    out.add(name, x.data(), shape);
    out.close();
}
// Rows that differ and are not too regular: [n, d].
inline std::vector<float> some_rows(std::size_t n, std::size_t d) {
    std::vector<float> x(n * d);
    for (std::size_t i = 0; i < x.size(); ++i)
        x[i] = std::sin(0.37f * float(i % 1009)) + 0.5f * std::cos(0.11f * float(i % 331)) + 0.2f;
    return x;
}

}  // namespace program
