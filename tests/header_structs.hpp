#pragma once
// The structs of a header that have a certain member function, so that a test can insist on covering all of them.

#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>

// header: below include/psae. Structs at namespace scope, as clang-format lays them out.
inline std::set<std::string> structs_with_member(const std::string& header, const std::string& member) {
    std::ifstream file(std::string(PSAE_SOURCE_DIR) + "/include/psae/" + header);
    if (!file) throw std::runtime_error("no header " + header);
    std::stringstream text;
    text << file.rdbuf();
    const std::string source = text.str();
    const std::regex struct_with_body("\nstruct (\\w+)[^;{]*\\{([^]*?)\n\\};");
    std::set<std::string> names;
    for (std::sregex_iterator i(source.begin(), source.end(), struct_with_body), end; i != end; ++i)
        if ((*i)[2].str().find(" " + member + "(") != std::string::npos) names.insert((*i)[1]);
    return names;
}
