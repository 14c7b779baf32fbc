#pragma once
// The structs of a header that have (or inherit) a certain member function, so that a test can insist on covering all of them.

#include <fstream>
#include <set>
#include <stdexcept>
#include <string>

// header: below include/psae. Structs at namespace scope, as clang-format lays them out.
inline std::set<std::string> structs_with_member(const std::string& header, const std::string& member) {
    std::ifstream file(std::string(PSAE_SOURCE_DIR) + "/include/psae/" + header);
    if (!file) throw std::runtime_error("no header " + header);
    std::set<std::string> names;
    std::string line, name;
    while (std::getline(file, line)) {
        if (line.rfind("struct ", 0) == 0) name = line.substr(7, line.find_first_of(" :{;", 7) - 7);
        const auto base = line.find(" : ");
        if (!name.empty() && base != std::string::npos && line.rfind("struct ", 0) == 0 &&
            names.contains(line.substr(base + 3, line.find(' ', base + 3) - base - 3)))
            names.insert(name);
        if (line.rfind("};", 0) == 0) name.clear();
        if (!name.empty() && line.find(" " + member + "(") != std::string::npos) names.insert(name);
    }
    return names;
}
