#pragma once
// Simple charts, as SVG text for pages and as pictures for PNG files.
//
//   psae::chart c = psae::line_plot("loss", "step", "mse", {{"train", steps, losses}});
//   write_text("loss.svg", psae::to_svg(c));  psae::write_png("loss.png", psae::to_image(c));
//
// In an SVG the colours of paper, ink, grid and frame are the CSS variables --chart-paper, --chart-ink, --chart-grid and
// --chart-frame, so that a page can set them (for dark screens, say); without them they are those of the picture.

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <psae/attribution/picture.hpp>

namespace psae {

struct series {
    std::string name;  // for the legend; empty: not in it
    // Equally many; points that are not finite, or not positive on a logarithmic axis, are left out.
    std::vector<double> x, y;
    // Of points: numbers that colour them, equally many (not finite: gray); empty: the colour of the series.
    std::vector<double> value{};
};

struct chart {
    std::string title, x_label, y_label;
    std::vector<series> data;
    bool lines = true;  // or points
    bool log_x = false, log_y = false;
    std::string value_label{};         // of the colour bar for the values of points
    double width = 720, height = 440;  // of the SVG, and half of the picture's pixels
};

// A chart and the name of its file, without extension.
struct named_chart {
    std::string file;
    chart drawing;
};

struct chart_axes {
    bool log_x = false, log_y = false;
};

namespace detail {

struct plot_point {
    double x, y;
};

inline colour series_colour(std::size_t i) {
    static constexpr colour list[] = {{42, 112, 186}, {217, 95, 2},   {27, 140, 90}, {190, 40, 110},
                                      {117, 92, 180}, {160, 120, 20}, {80, 80, 80},  {60, 170, 200}};
    return list[i % std::size(list)];
}

inline std::string number_text(double v) {
    char buffer[64];
    if (std::abs(v) < 1e-300) return "0";
    const bool plain = std::abs(v) >= 9.999e-4 && std::abs(v) < 1e5;
    const auto r = plain ? std::to_chars(buffer, buffer + sizeof buffer, v, std::chars_format::fixed, 6)
                         : std::to_chars(buffer, buffer + sizeof buffer, v, std::chars_format::scientific, 3);
    std::string text(buffer, r.ptr), exponent;
    if (const auto e = text.find('e'); e != std::string::npos) {
        exponent = text.substr(e + 1);
        text.resize(e);
        const bool negative = exponent[0] == '-';
        exponent.erase(0, std::min(exponent.find_first_not_of("+-0"), exponent.size() - 1));
        exponent = (negative ? "e-" : "e") + exponent;
    }
    while (text.find('.') != std::string::npos && (text.back() == '0' || text.back() == '.')) {
        const bool point = text.back() == '.';
        text.pop_back();
        if (point) break;
    }
    return text + exponent;
}

// One axis: the range of its values (their logarithms on a logarithmic axis) and its ticks there.
struct plot_axis {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    bool logarithmic = false;
    std::vector<std::pair<double, std::string>> ticks;

    bool shows(double v) const {
        return std::abs(v) < 1e300 && (!logarithmic || v > 0);
    }  // beyond, the range itself would overflow
    double position(double v) const { return logarithmic ? std::log10(v) : v; }
    void include(double v) {
        low = std::min(low, position(v));
        high = std::max(high, position(v));
    }
    void finish(double margin, std::size_t about) {
        if (!(low <= high)) low = 0, high = 1;
        const double least = std::max(std::abs(low), std::abs(high)) * 1e-9;
        if (high - low <= least) {
            const double room = logarithmic ? 0.5 : low == 0 ? 1 : std::abs(low) * 0.1;
            low -= room, high += room;
        } else {
            const double room = (high - low) * margin;
            low -= room, high += room;
        }
        if (logarithmic && high - low >= 1.5) {
            const double stride = std::max(1.0, std::ceil((high - low) / static_cast<double>(about)));
            for (double d = std::ceil(low / stride) * stride; d <= high; d += stride)
                ticks.emplace_back(d, number_text(std::pow(10.0, d)));
            return;
        }
        // Steps of 1, 2 or 5 times a power of ten, in values.
        const double first = logarithmic ? std::pow(10.0, low) : low, last = logarithmic ? std::pow(10.0, high) : high;
        const double rough = (last - first) / static_cast<double>(about),
                     power = std::pow(10.0, std::floor(std::log10(rough)));
        const double step = power * (rough / power <= 1 ? 1 : rough / power <= 2 ? 2 : rough / power <= 5 ? 5 : 10);
        for (int i = 0; i < 100; ++i) {
            double v = (std::ceil(first / step) + i) * step;
            if (v > last) break;
            if (std::abs(v) < step * 1e-6) v = 0;
            ticks.emplace_back(position(v), number_text(v));
        }
    }
};

// Blue over gray to orange for 0 to 1, in steps: told apart on light and dark paper and by the colour-blind.
inline constexpr std::size_t value_steps = 16;
inline colour value_colour(std::size_t step) {
    static constexpr double stops[][3] = {{33, 102, 188}, {142, 132, 150}, {232, 112, 20}};
    const double at = 2 * static_cast<double>(step) / static_cast<double>(value_steps - 1);
    const int low = std::min(1, static_cast<int>(at));
    colour out{};
    for (std::size_t c = 0; c < 3; ++c)
        out[c] =
            static_cast<std::uint8_t>(std::lround(stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c])));
    return out;
}

// A colour, and the CSS variable that may replace it in an SVG (null: none).
struct paint {
    colour value;
    const char* variable = nullptr;
    paint(const colour& c, const char* v = nullptr) : value(c), variable(v) {}
};

enum class text_anchor { start, middle, end };

// Draws to SVG. Texts are centred vertically on their y.
class svg_canvas {
public:
    svg_canvas(double width, double height) {
        out_ = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + text(width) + " " + text(height) +
               "\" width=\"" + text(width) + "\" height=\"" + text(height) +
               "\" font-family=\"system-ui, sans-serif\">\n<rect width=\"100%\" height=\"100%\" style=\"fill:" +
               css({{255, 255, 255}, "--chart-paper"}) + "\"/>\n";
    }
    void line(plot_point a, plot_point b, const paint& c, double width) {
        out_ += "<path d=\"M" + text(a) + "L" + text(b) + "\" style=\"stroke:" + css(c) +
                ";stroke-width:" + text(width) + "\"/>\n";
    }
    void polyline(const std::vector<plot_point>& points, const paint& c, double width) {
        if (points.empty()) return;
        out_ += "<path style=\"fill:none;stroke-linejoin:round;stroke-linecap:round;stroke:" + css(c) +
                ";stroke-width:" + text(width) + "\" d=\"";
        for (std::size_t i = 0; i < points.size(); ++i) out_ += (i == 0 ? "M" : "L") + text(points[i]);
        out_ += points.size() == 1 ? "h0\"/>\n" : "\"/>\n";
    }
    // Zero-length strokes with round ends: a tenth of the bytes of circles.
    void dots(const std::vector<plot_point>& points, const paint& c, double radius, double opacity) {
        if (points.empty()) return;
        out_ += "<path style=\"fill:none;stroke-linecap:round;stroke-opacity:" + text(opacity) + ";stroke:" + css(c) +
                ";stroke-width:" + text(2 * radius) + "\" d=\"";
        for (const plot_point& p : points) out_ += "M" + text(p) + "h0";
        out_ += "\"/>\n";
    }
    void box(plot_point from, double width, double height, const paint& c) {
        out_ += "<rect x=\"" + text(from.x) + "\" y=\"" + text(from.y) + "\" width=\"" + text(width) + "\" height=\"" +
                text(height) + "\" style=\"fill:" + css(c) + "\"/>\n";
    }
    void write(plot_point at, std::string_view words, text_anchor anchor, const paint& c, bool large, bool upwards) {
        static constexpr const char* names[] = {"start", "middle", "end"};
        out_ += "<text x=\"" + text(at.x) + "\" y=\"" + text(at.y) + "\" dy=\".35em\" text-anchor=\"" +
                names[static_cast<int>(anchor)] + "\" style=\"fill:" + css(c) + "\" font-size=\"" +
                (large ? "15\" font-weight=\"600" : "12") + "\"";
        if (upwards) out_ += " transform=\"rotate(-90 " + text(at.x) + " " + text(at.y) + ")\"";
        out_ += ">";
        for (const char ch : words) {
            if (ch == '&') out_ += "&amp;";
            else if (ch == '<') out_ += "&lt;";
            else if (ch == '>') out_ += "&gt;";
            else out_ += static_cast<unsigned char>(ch) < 32 ? ' ' : ch;  // control characters are not allowed in XML
        }
        out_ += "</text>\n";
    }
    static double width_of(std::string_view words) { return 6.6 * static_cast<double>(words.size()); }
    std::string finish() && { return std::move(out_) + "</svg>\n"; }

private:
    static std::string text(double v) {
        char buffer[64];
        const auto r = std::to_chars(buffer, buffer + sizeof buffer, v, std::chars_format::fixed, 1);
        std::string out(buffer, r.ptr);
        if (out.find('.') == std::string::npos) return out;
        while (out.back() == '0') out.pop_back();
        if (out.back() == '.') out.pop_back();
        return out;
    }
    static std::string text(plot_point p) { return text(p.x) + " " + text(p.y); }
    static std::string css(const paint& c) {
        std::string out = "#";
        for (const std::uint8_t v : c.value) out += "0123456789abcdef"[v >> 4], out += "0123456789abcdef"[v & 15];
        return c.variable == nullptr ? out : "var(" + std::string(c.variable) + "," + out + ")";
    }
    std::string out_;
};

// Draws to an image with two pixels per unit, smooth edges.
class image_canvas {
public:
    image_canvas(double width, double height)
        : on_(blank_image(static_cast<std::size_t>(width * scale), static_cast<std::size_t>(height * scale))) {}

    void line(plot_point a, plot_point b, const paint& c, double width) {
        a = {a.x * scale, a.y * scale}, b = {b.x * scale, b.y * scale};
        const double half = width * scale / 2, dx = b.x - a.x, dy = b.y - a.y, square = dx * dx + dy * dy;
        const auto low = [&](double p, double q) {
            return static_cast<std::ptrdiff_t>(std::floor(std::min(p, q) - half - 1));
        };
        const auto high = [&](double p, double q) {
            return static_cast<std::ptrdiff_t>(std::ceil(std::max(p, q) + half + 1));
        };
        for (std::ptrdiff_t y = low(a.y, b.y); y <= high(a.y, b.y); ++y) {
            // Only the part of the row near the line: a long slanted one has a large box.
            std::ptrdiff_t x0 = low(a.x, b.x), x1 = high(a.x, b.x);
            if (std::abs(dy) > 1e-9) {
                const double reach = (half + 1) * std::sqrt(square) / std::abs(dy) + 1,
                             at = a.x + (static_cast<double>(y) + 0.5 - a.y) * dx / dy;
                x0 = std::max(x0, static_cast<std::ptrdiff_t>(std::floor(std::max(at - reach, -1e6))));
                x1 = std::min(x1, static_cast<std::ptrdiff_t>(std::ceil(std::min(at + reach, 1e6))));
            }
            for (std::ptrdiff_t x = x0; x <= x1; ++x) {
                const double px = static_cast<double>(x) + 0.5 - a.x, py = static_cast<double>(y) + 0.5 - a.y;
                const double t = square > 0 ? std::clamp((px * dx + py * dy) / square, 0.0, 1.0) : 0.0;
                blend(on_, x, y, c.value, half + 0.5 - std::hypot(px - t * dx, py - t * dy));
            }
        }
    }
    void polyline(const std::vector<plot_point>& points, const paint& c, double width) {
        for (std::size_t i = 1; i < points.size(); ++i) line(points[i - 1], points[i], c, width);
        if (points.size() == 1) line(points[0], points[0], c, width);
    }
    void dots(const std::vector<plot_point>& points, const paint& c, double radius, double opacity) {
        const double r = radius * scale;
        for (const plot_point& p : points)
            for (auto y = static_cast<std::ptrdiff_t>(p.y * scale - r - 1);
                 y <= static_cast<std::ptrdiff_t>(p.y * scale + r + 1); ++y)
                for (auto x = static_cast<std::ptrdiff_t>(p.x * scale - r - 1);
                     x <= static_cast<std::ptrdiff_t>(p.x * scale + r + 1); ++x)
                    blend(on_, x, y, c.value,
                          opacity * std::clamp(r + 0.5 -
                                                   std::hypot(static_cast<double>(x) + 0.5 - p.x * scale,
                                                              static_cast<double>(y) + 0.5 - p.y * scale),
                                               0.0, 1.0));
    }
    void write(plot_point at, std::string_view words, text_anchor anchor, const paint& c, bool large, bool upwards) {
        const std::size_t s = large ? 3 : 2;
        const double back = static_cast<double>(text_width(words, s)) * (anchor == text_anchor::start    ? 0
                                                                         : anchor == text_anchor::middle ? 0.5
                                                                                                         : 1);
        const double half_height = 3.5 * static_cast<double>(s), x = at.x * scale, y = at.y * scale;
        if (upwards) draw_text(on_, std::lround(x - half_height), std::lround(y + back), words, c.value, s, true);
        else draw_text(on_, std::lround(x - back), std::lround(y - half_height), words, c.value, s);
    }
    void box(plot_point from, double width, double height, const paint& c) {
        fill(on_, std::lround(from.x * scale), std::lround(from.y * scale), std::lround(width * scale),
             std::lround(height * scale), c.value);
    }
    static double width_of(std::string_view words) { return static_cast<double>(text_width(words, 2)) / scale; }
    image finish() && { return std::move(on_); }

private:
    static constexpr double scale = 2;
    image on_;
};

// What a line of many points looks like: of every `width` the points that enter and leave it, the lowest and the
// highest.
inline std::vector<plot_point> thinned_line(const std::vector<plot_point>& points, double width) {
    std::vector<plot_point> out;
    for (std::size_t first = 0; first < points.size();) {
        std::size_t end = first + 1, low = first, high = first;
        const double column = std::floor(points[first].x / width);
        for (; end < points.size() && std::floor(points[end].x / width) == column; ++end) {
            if (points[end].y < points[low].y) low = end;
            if (points[end].y > points[high].y) high = end;
        }
        std::size_t last = points.size();
        for (const std::size_t i : {first, std::min(low, high), std::max(low, high), end - 1})
            if (i != last) out.push_back(points[last = i]);
        first = end;
    }
    return out;
}

// Points that fall on the same half unit drawn once.
inline std::vector<plot_point> distinct_dots(std::vector<plot_point> points) {
    for (plot_point& p : points) p = {std::round(2 * p.x) / 2, std::round(2 * p.y) / 2};
    const auto key = [](const plot_point& p) { return std::pair{p.x, p.y}; };
    std::sort(points.begin(), points.end(), [&](const auto& a, const auto& b) { return key(a) < key(b); });
    points.erase(
        std::unique(points.begin(), points.end(), [&](const auto& a, const auto& b) { return key(a) == key(b); }),
        points.end());
    return points;
}

template <class Canvas>
auto draw_chart(const chart& c) {
    for (const series& s : c.data)
        if (s.x.size() != s.y.size() || (!s.value.empty() && s.value.size() != s.x.size()))
            throw error("chart series has x, y and values of different lengths", "series " + s.name,
                        std::to_string(s.x.size()) + ", " + std::to_string(s.y.size()) + " and " +
                            std::to_string(s.value.size()));
    const double right = c.width - 20, bottom = c.height - 56;
    const paint ink({50, 50, 50}, "--chart-ink"), faint({228, 228, 228}, "--chart-grid"),
        frame({120, 120, 120}, "--chart-frame"), valueless({150, 150, 150});
    plot_axis x, y, value;
    x.logarithmic = c.log_x, y.logarithmic = c.log_y;
    const auto shown = [&](const series& s, std::size_t i) { return x.shows(s.x[i]) && y.shows(s.y[i]); };
    for (const series& s : c.data)
        for (std::size_t i = 0; i < s.x.size(); ++i) {
            if (!shown(s, i)) continue;
            x.include(s.x[i]), y.include(s.y[i]);
            if (!s.value.empty() && value.shows(s.value[i])) value.include(s.value[i]);
        }
    const bool bar = value.low <= value.high;
    x.finish(c.lines ? 0.0 : 0.03, c.width < 500 ? 5 : 8);
    y.finish(0.05, c.height < 300 ? 4 : 6);
    if (bar) value.finish(0, 3);

    Canvas out(c.width, c.height);
    double widest = 0;
    for (const auto& t : y.ticks) widest = std::max(widest, Canvas::width_of(t.second));
    const double left = 46 + widest;
    double top = 24;
    if (!c.title.empty()) {
        out.write({left, 24}, c.title, text_anchor::start, ink, true, false);
        top += 24;
    }
    // The legend is a line or more of names above the frame; the colour bar has a line of its own.
    double at = left;
    bool legend = false;
    for (std::size_t i = 0; i < c.data.size(); ++i) {
        if (c.data[i].name.empty()) continue;
        const double needs = 28 + Canvas::width_of(c.data[i].name) + 16;
        if (legend && at + needs > right + 16) at = left, top += 18;
        if (c.lines) out.line({at, top}, {at + 20, top}, series_colour(i), 2);
        else out.dots({{at + 12, top}}, series_colour(i), 3.5, 1);
        out.write({at + 27, top}, c.data[i].name, text_anchor::start, ink, false, false);
        at += needs;
        legend = true;
    }
    if (legend) top += 20;
    if (bar) {
        constexpr double step = 8;
        double from = left;
        const auto say = [&](const std::string& words) {
            out.write({from, top}, words, text_anchor::start, ink, false, false);
            from += Canvas::width_of(words) + 10;
        };
        say(c.value_label);
        say(number_text(std::round(value.low * 100) / 100));
        for (std::size_t i = 0; i < value_steps; ++i, from += step) out.box({from, top - 5}, step, 10, value_colour(i));
        from += 10;
        say(number_text(std::round(value.high * 100) / 100));
        top += 20;
    }
    top = std::min(top, bottom - 60);

    const auto place_x = [&](double v) { return left + (v - x.low) / (x.high - x.low) * (right - left); };
    const auto place_y = [&](double v) { return bottom - (v - y.low) / (y.high - y.low) * (bottom - top); };
    double written = -1e9;  // where the last label of the x axis ended: none over another
    for (const auto& [v, label] : x.ticks) {
        out.line({place_x(v), top}, {place_x(v), bottom}, faint, 1);
        out.line({place_x(v), bottom}, {place_x(v), bottom + 5}, frame, 1);
        const double half = Canvas::width_of(label) / 2, middle = std::min(place_x(v), c.width - half - 2);
        if (middle - half < written + 6) continue;
        out.write({middle, bottom + 16}, label, text_anchor::middle, ink, false, false);
        written = middle + half;
    }
    for (const auto& [v, label] : y.ticks) {
        out.line({left, place_y(v)}, {right, place_y(v)}, faint, 1);
        out.line({left - 5, place_y(v)}, {left, place_y(v)}, frame, 1);
        out.write({left - 9, place_y(v)}, label, text_anchor::end, ink, false, false);
    }
    for (std::size_t i = 0; i < c.data.size(); ++i) {
        const series& s = c.data[i];
        // One list of points a colour: the steps of values from the top down, so that low values lie above high ones.
        std::vector<std::vector<plot_point>> points(s.value.empty() ? 1 : value_steps + 1);
        const auto flush = [&] {
            out.polyline(points[0].size() > 2000 ? thinned_line(points[0], 1) : points[0], series_colour(i), 2);
            points[0].clear();
        };
        for (std::size_t k = 0; k < s.x.size(); ++k) {
            if (!shown(s, k)) {
                if (c.lines) flush();  // a gap, not a bridge
                continue;
            }
            std::size_t list = 0;
            if (!s.value.empty() && value.shows(s.value[k])) {
                const double share = (s.value[k] - value.low) / (value.high - value.low);
                list = value_steps - static_cast<std::size_t>(std::lround(share * double(value_steps - 1)));
            }
            points[list].push_back({place_x(x.position(s.x[k])), place_y(y.position(s.y[k]))});
        }
        if (c.lines) {
            flush();
            continue;
        }
        const bool many = s.x.size() > 2000;
        for (std::size_t list = 0; list < points.size(); ++list)
            out.dots(many ? distinct_dots(std::move(points[list])) : points[list],
                     s.value.empty() ? paint(series_colour(i))
                     : list == 0     ? valueless
                                     : paint(value_colour(value_steps - list)),
                     many ? 1.6 : 2.5, many ? 0.5 : 0.7);
    }
    out.line({left, top}, {left, bottom}, frame, 1);
    out.line({left, bottom}, {right, bottom}, frame, 1);
    out.write({(left + right) / 2, c.height - 20}, c.x_label, text_anchor::middle, ink, false, false);
    out.write({16, (top + bottom) / 2}, c.y_label, text_anchor::middle, ink, false, true);
    return std::move(out).finish();
}

}  // namespace detail

// Series as lines, in the order of their points.
inline chart line_plot(std::string title, std::string x_label, std::string y_label, std::vector<series> data,
                       chart_axes axes = {}) {
    return {
        std::move(title), std::move(x_label), std::move(y_label), std::move(data), true, axes.log_x, axes.log_y, {}};
}
// Series as points.
inline chart scatter_plot(std::string title, std::string x_label, std::string y_label, std::vector<series> data,
                          chart_axes axes = {}) {
    return {
        std::move(title), std::move(x_label), std::move(y_label), std::move(data), false, axes.log_x, axes.log_y, {}};
}

// The chart as an SVG document, about twelve bytes a point. psae::error for a series with x, y and values of different
// lengths.
inline std::string to_svg(const chart& c) { return detail::draw_chart<detail::svg_canvas>(c); }
// The chart as a picture with two pixels for each unit of its size. psae::error as to_svg.
inline image to_image(const chart& c) { return detail::draw_chart<detail::image_canvas>(c); }

}  // namespace psae
