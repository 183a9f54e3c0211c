// SPDX-License-Identifier: MIT
#pragma once

// A progress bar on stderr, and nothing at all where stderr is no terminal.

#include <chrono>
#include <string>

namespace bench {

/// One line that is redrawn at most ten times a second and wiped at the end.
class progress {
public:
    /// `total` is in any unit; `advance` counts in it.
    explicit progress(double total);
    ~progress();
    progress(progress const&)            = delete;
    progress& operator=(progress const&) = delete;

    /// What is being done now.
    void label(std::string text);
    void advance(double amount);
    /// Takes the line away, so that something can be printed.
    void wipe();

private:
    void draw(bool now);

    double total_;
    double done_ = 0;
    std::string label_;
    bool shown_ = false;
    bool on_terminal_;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
    std::chrono::steady_clock::time_point drawn_{};
};

} // namespace bench
