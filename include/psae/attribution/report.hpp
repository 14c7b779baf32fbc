#pragma once
// A training run and its latents as one HTML page that needs nothing else: charts are inline SVG, pictures data URIs.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <psae/attribution/chart.hpp>
#include <psae/attribution/latent_pictures.hpp>
#include <psae/attribution/latent_summary.hpp>
#include <psae/core/utf8.hpp>

namespace psae {

struct report_latent {
    std::size_t latent = 0;
    std::vector<reference_image> images;
    std::vector<std::pair<std::string, double>> labels;  // of its top images, with their shares, the largest first
};

// A field of a table; one that speaks of a latent leads to the latent's card, if the page has it.
struct report_field {
    std::string text;
    std::optional<std::size_t> latent{};
};

// A part of the page with what another command found: drawings, then a table.
struct report_section {
    std::string title, explanation;
    std::vector<std::string> drawings;  // SVG files. They are shown as images, so nothing in them is run
    std::vector<std::string> header;
    std::vector<std::vector<report_field>> rows;
    std::vector<std::pair<std::string, image>> pictures{};  // what they show, and they; before the drawings
};

// What is empty is left out of the page; a note says why.
struct report {
    std::string title, subtitle;
    std::vector<std::pair<std::string, std::string>> facts;  // name and value: the final metrics
    std::vector<chart> curves, scatter;
    latent_summary summary;
    std::vector<report_section> sections;
    std::vector<report_latent> latents;
    std::vector<std::pair<std::string, std::string>> configuration;
    std::vector<std::string> notes;  // what is missing from the page, and why
};

namespace detail {

// Text for an element or a quoted attribute. Bytes that are not UTF-8 and control characters become U+FFFD.
inline std::string html_text(std::string_view text) {
    std::string out;
    while (!text.empty()) {
        char32_t code = 0;
        const std::size_t length = utf8_character(text, code);
        if (code == U'&') out += "&amp;";
        else if (code == U'<') out += "&lt;";
        else if (code == U'>') out += "&gt;";
        else if (code == U'"') out += "&quot;";
        else if (code == U'\'') out += "&#39;";
        else if (length > 0 && (code == U'\n' || code == U'\t' || (code >= 0x20 && code != 0x7f)))
            out += text.substr(0, length);
        else out += "\xef\xbf\xbd";
        text.remove_prefix(std::max<std::size_t>(length, 1));
    }
    return out;
}

inline std::string base64(std::string_view bytes) {
    static constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string out;
    out.reserve((bytes.size() + 2) / 3 * 4);
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        std::uint32_t v = 0;
        for (std::size_t j = 0; j < 3; ++j)
            v = v << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0u);
        for (std::size_t j = 0; j < 4; ++j) out += i + j <= bytes.size() ? digits[v >> (18 - 6 * j) & 63] : '=';
    }
    return out;
}

inline std::string short_number(double v, int digits = 3) {
    char text[32];
    std::snprintf(text, sizeof text, "%.*g", digits, v);
    return text;
}

inline constexpr std::string_view report_style = R"css(
:root{color-scheme:light dark;--paper:#fafaf8;--card:#fff;--ink:#24292f;--soft:#646c76;--line:#e2e3e0;--accent:#2d6f8e;--bar:#cfe3ec;
--chart-paper:transparent;--chart-ink:#454c54;--chart-grid:#e8e9e6;--chart-frame:#9aa0a6}
@media(prefers-color-scheme:dark){:root{--paper:#15181b;--card:#1d2125;--ink:#e2e5e8;--soft:#98a0a8;--line:#30363c;--accent:#7fbbd6;--bar:#2b4756;
--chart-ink:#b9c0c7;--chart-grid:#2c3237;--chart-frame:#69727b}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1180px;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .3rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.8rem 0 .9rem}
p{margin:.3rem 0}.soft{color:var(--soft);overflow-wrap:anywhere}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.2rem,1fr));gap:.75rem;margin:1.6rem 0 0}
.facts div{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.7rem .9rem}
.facts dt{color:var(--soft);font-size:.82rem}.facts dd{margin:0;font-size:1.3rem;font-weight:600;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.note{border-left:3px solid var(--accent);background:var(--card);padding:.6rem .9rem;margin:.6rem 0;overflow-wrap:anywhere}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:.75rem}
.charts figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.5rem}
.charts svg{display:block;width:100%;height:auto;max-width:34rem;margin:0 auto}
.tools{display:flex;flex-wrap:wrap;gap:.6rem 1.2rem;align-items:center;margin:0 0 1rem;font-size:.92rem}
.tools label{display:flex;align-items:center;gap:.45rem}
.tools select,.tools input[type=search]{font:inherit;color:inherit;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.3rem .5rem;max-width:12rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,33rem),1fr));gap:1rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:.9rem 1rem 1rem;min-width:0;content-visibility:auto;contain-intrinsic-size:auto 24rem}
.card h3{margin:0;font-size:1.02rem}.card h3 a{color:inherit;text-decoration:none}.card h3 a:hover{text-decoration:underline}
.card .soft{font-size:.85rem;margin:.1rem 0 .6rem;font-variant-numeric:tabular-nums}
.images{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.4rem,1fr));gap:.5rem}
.images figure{margin:0;min-width:0}.images figcaption{font-size:.75rem;color:var(--soft);white-space:nowrap;overflow:hidden;text-overflow:ellipsis}
.picture{position:relative;display:block;aspect-ratio:1;border-radius:6px;overflow:hidden;background:#ddd}
.picture img{position:absolute;inset:0;width:100%;height:100%;object-fit:cover}
.map{image-rendering:pixelated;transition:opacity .15s}
.picture:hover .map,#masks:not(:checked)~.cards .map{opacity:0}
.labels{list-style:none;display:flex;flex-wrap:wrap;gap:.35rem;margin:.7rem 0 0;padding:0;font-size:.8rem}
.labels li{border-radius:6px;padding:.1rem .5rem;border:1px solid var(--line);background:linear-gradient(90deg,var(--bar) var(--share),transparent var(--share));overflow-wrap:anywhere}
details{margin-top:.5rem}summary{cursor:pointer}
table{border-collapse:collapse;font-size:.88rem;margin:.6rem 0}td{padding:.2rem 1.4rem .2rem 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
td:first-child{color:var(--soft);overflow-wrap:normal}
th{text-align:left;font-weight:600;padding:.2rem 1.4rem .2rem 0;border-bottom:1px solid var(--line)}
.wide{overflow-x:auto}.wide td{font-variant-numeric:tabular-nums;white-space:nowrap}.wide a{color:var(--accent)}
.charts figure img{display:block;width:100%;height:auto;max-width:34rem;margin:0 auto;background:#fff;border-radius:6px}
.wide-charts{grid-template-columns:repeat(auto-fit,minmax(min(100%,34rem),1fr));margin-bottom:1rem}.wide-charts figure img{max-width:none}
.switch{position:absolute;opacity:0}.switch:focus-visible+.tools .for-switch{outline:2px solid var(--accent)}
.for-switch{cursor:pointer;border:1px solid var(--line);border-radius:8px;padding:.3rem .7rem;background:var(--card)}
#masks:checked+.tools .for-switch{background:var(--bar)}
[hidden]{display:none}
)css";

// Sorting and filtering of the cards; without a script they stand as they are.
inline constexpr std::string_view report_script = R"js(
const tools=document.querySelectorAll('.tools [hidden]'),cards=document.querySelector('.cards');
if(cards){tools.forEach(t=>t.hidden=false);
const all=[...cards.children],order=document.getElementById('order'),filter=document.getElementById('filter');
order.onchange=()=>{const[key,sign]=order.value.split(' ');
const value=c=>{const v=parseFloat(c.dataset[key]);return isNaN(v)?Infinity:sign*v};
all.sort((a,b)=>value(a)-value(b));cards.append(...all)};
filter.oninput=()=>{const words=filter.value.toLowerCase();all.forEach(c=>c.hidden=!c.dataset.words.includes(words))};}
)js";

inline std::string report_card(const latent_summary& s, const report_latent& l, std::size_t place) {
    const std::string id = std::to_string(l.latent);
    std::string words = "latent " + id;
    for (const auto& [name, share] : l.labels) words += " " + name;
    for (const reference_image& r : l.images) words += " " + r.file.substr(r.file.find_last_of('/') + 1);
    for (char& c : words)
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    std::string out = "<article class=\"card\" id=\"latent-" + id + "\" data-place=\"" + std::to_string(place) +
                      "\" data-frequency=\"" + short_number(s.token_frequency[l.latent], 6) + "\" data-activation=\"" +
                      short_number(s.mean_activation[l.latent], 6) + "\" data-entropy=\"" +
                      short_number(s.label_entropy[l.latent], 6) + "\" data-words=\"" + html_text(words) +
                      "\">\n<h3><a href=\"#latent-" + id + "\">Latent " + id + "</a></h3>\n<p class=\"soft\">" +
                      html_text(describe_latent(s, l.latent)) + "</p>\n";
    if (l.images.empty()) out += "<p class=\"soft\">Its top images could not be read.</p>\n";
    const float largest = largest_of_maps(l.images);
    out += "<div class=\"images\">\n";
    for (const reference_image& r : l.images) {
        const std::string name = html_text(r.file.substr(r.file.find_last_of('/') + 1));
        out += "<figure title=\"" + html_text(r.file) + "\"><span class=\"picture\"><img alt=\"" + name +
               "\" src=\"data:image/jpeg;base64," + base64(encode_jpeg(r.picture, 85)) + "\">";
        if (!r.map.empty())
            out += "<img class=\"map\" alt=\"\" src=\"data:image/png;base64," +
                   base64(encode_png(heat_layer(r.map, largest), r.cols, r.rows, 4)) + "\">";
        out += "</span><figcaption>" + short_number(static_cast<double>(r.score)) + " " +
               html_text(r.label.empty() ? r.file.substr(r.file.find_last_of('/') + 1) : r.label) +
               "</figcaption></figure>\n";
    }
    out += "</div>\n";
    if (!l.labels.empty()) {
        out += "<ul class=\"labels\">\n";
        for (const auto& [label, share] : l.labels) {
            const std::string percent = std::to_string(std::lround(100 * share)) + "%";
            out += "<li style=\"--share:" + percent + "\">" + html_text(label) + " " + percent + "</li>\n";
        }
        out += "</ul>\n";
    }
    return out + "</article>\n";
}

inline std::string report_part(const report& r, const report_section& part) {
    std::string out = "<section>\n<h2>" + html_text(part.title) + "</h2>\n<p class=\"soft\">" +
                      html_text(part.explanation) + "</p>\n";
    if (!part.pictures.empty()) {
        out += "<div class=\"charts wide-charts\">\n";
        for (const auto& [shown, picture] : part.pictures)
            out += "<figure><img alt=\"" + html_text(shown) + "\" title=\"" + html_text(shown) +
                   "\" src=\"data:image/jpeg;base64," + base64(encode_jpeg(picture, 85)) + "\"></figure>\n";
        out += "</div>\n";
    }
    if (!part.drawings.empty()) {
        out += "<div class=\"charts\">\n";
        for (const std::string& svg : part.drawings)
            out += "<figure><img alt=\"" + html_text(part.title) + "\" src=\"data:image/svg+xml;base64," + base64(svg) +
                   "\"></figure>\n";
        out += "</div>\n";
    }
    if (part.rows.empty()) return out + "</section>\n";
    out += "<div class=\"wide\"><table>\n<tr>";
    for (const std::string& name : part.header) out += "<th>" + html_text(name) + "</th>";
    out += "</tr>\n";
    for (const auto& row : part.rows) {
        out += "<tr>";
        for (const report_field& field : row) {
            const bool has_card = field.latent && std::any_of(r.latents.begin(), r.latents.end(),
                                                              [&](const auto& l) { return l.latent == *field.latent; });
            out += "<td>";
            if (has_card) out += "<a href=\"#latent-" + std::to_string(*field.latent) + "\">";
            out += html_text(field.text);
            out += has_card ? "</a></td>" : "</td>";
        }
        out += "</tr>\n";
    }
    return out + "</table></div>\n</section>\n";
}

}  // namespace detail

// The page, in UTF-8. Every text of the report may be anything: it is escaped.
inline std::string to_html(const report& r) {
    using detail::html_text;
    std::string out =
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>" +
        html_text(r.title) + "</title>\n<style>" + std::string(detail::report_style) +
        "</style>\n</head>\n<body>\n<main>\n<h1>" + html_text(r.title) + "</h1>\n<p class=\"soft\">" +
        html_text(r.subtitle) + "</p>\n";
    if (!r.facts.empty()) {
        out += "<dl class=\"facts\">\n";
        for (const auto& [name, value] : r.facts)
            out += "<div><dt>" + html_text(name) + "</dt><dd>" + html_text(value) + "</dd></div>\n";
        out += "</dl>\n";
    }
    for (const std::string& note : r.notes) out += "<p class=\"note\">" + html_text(note) + "</p>\n";
    const auto charts = [&](const char* title, const char* explanation, const std::vector<chart>& drawings) {
        if (drawings.empty()) return;
        out += std::string("<section>\n<h2>") + title + "</h2>\n" + explanation + "<div class=\"charts\">\n";
        for (const chart& c : drawings) out += "<figure>\n" + to_svg(c) + "</figure>\n";
        out += "</div>\n</section>\n";
    };
    charts("Training", "", r.curves);
    charts("All latents",
           "<p class=\"soft\">One point a latent that fires: the fraction of tokens on which it does, and its mean "
           "activation there.</p>\n",
           r.scatter);
    for (const report_section& part : r.sections) out += detail::report_part(r, part);
    if (!r.latents.empty()) {
        const bool labelled =
            std::any_of(r.latents.begin(), r.latents.end(), [](const auto& l) { return !l.labels.empty(); });
        out +=
            "<section>\n<h2>Latents and their images</h2>\n<p class=\"soft\">" + std::to_string(r.latents.size()) +
            " latents that are strong on their top images and silent on most others" +
            (labelled ? ", with labels that stand out from those of all images" : "") +
            ". Bright patches are where the latent fires, dark ones where it is silent; the number below an image is "
            "the latent's mean activation over it. Point at an image to see it without the mask.</p>\n"
            "<input type=\"checkbox\" class=\"switch\" id=\"masks\" checked>\n<div class=\"tools\">"
            "<label class=\"for-switch\" for=\"masks\">Masks</label>"
            "<label hidden>Order <select id=\"order\"><option value=\"place 1\">most interesting</option>"
            "<option value=\"frequency 1\">rarest</option><option value=\"frequency -1\">most frequent</option>"
            "<option value=\"activation -1\">strongest</option>" +
            (labelled ? "<option value=\"entropy 1\">purest labels</option>" : "") +
            "</select></label><label hidden>Filter <input type=\"search\" id=\"filter\" placeholder=\"label or "
            "file\"></label></div>\n<div class=\"cards\">\n";
        for (std::size_t i = 0; i < r.latents.size(); ++i) out += detail::report_card(r.summary, r.latents[i], i);
        out += "</div>\n</section>\n";
    }
    if (!r.configuration.empty()) {
        out +=
            "<section>\n<h2>Configuration</h2>\n<details open>\n<summary>What the run was made "
            "with</summary>\n<table>\n";
        for (const auto& [name, value] : r.configuration)
            out += "<tr><td>" + html_text(name) + "</td><td>" + html_text(value) + "</td></tr>\n";
        out += "</table>\n</details>\n</section>\n";
    }
    return out + "</main>\n<script>" + std::string(detail::report_script) + "</script>\n</body>\n</html>\n";
}

}  // namespace psae
