#pragma once

#include <cmath>
#include <limits>

namespace psae {

// Pearson's correlation of pairs added one by one; NaN where one side does not vary or there are fewer than two.
class pair_correlation {
public:
    void add(double x, double y) {
        ++n_;
        const double dx = x - mean_x_, dy = y - mean_y_;  // Welford's update
        mean_x_ += dx / n_;
        mean_y_ += dy / n_;
        xx_ += dx * (x - mean_x_);
        yy_ += dy * (y - mean_y_);
        xy_ += dx * (y - mean_y_);
    }
    double value() const {
        return n_ >= 2 && xx_ > 0 && yy_ > 0 ? xy_ / std::sqrt(xx_ * yy_) : std::numeric_limits<double>::quiet_NaN();
    }

private:
    double n_ = 0, mean_x_ = 0, mean_y_ = 0, xx_ = 0, yy_ = 0, xy_ = 0;
};

}  // namespace psae
