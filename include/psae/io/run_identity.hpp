#pragma once
// What has to be the same for work that was stopped to go on, by name.

#include <map>
#include <string>

namespace psae {

using run_identity = std::map<std::string, std::string>;

// What differs, "name ours (WHERE: theirs), ..", `where` saying whose the other is; empty if nothing does.
inline std::string identity_differences(const run_identity& ours, const run_identity& theirs,
                                        const std::string& where) {
    std::string differences;
    const auto compare = [&](const std::string& name) {
        const auto now = ours.find(name), then = theirs.find(name);
        const std::string a = now == ours.end() ? "none" : now->second,
                          b = then == theirs.end() ? "none" : then->second;
        if (a != b) differences += (differences.empty() ? "" : ", ") + name + " " + a + " (" + where + ": " + b + ")";
    };
    for (const auto& [name, value] : ours) compare(name);
    for (const auto& [name, value] : theirs)
        if (!ours.contains(name)) compare(name);
    return differences;
}

}  // namespace psae
