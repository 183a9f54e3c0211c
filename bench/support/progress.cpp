// SPDX-License-Identifier: MIT
#include "progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace bench {

progress::progress(double total) : total_(total), on_terminal_(::isatty(STDERR_FILENO) == 1) {}

progress::~progress() {
    wipe();
}

void progress::label(std::string text) {
    label_ = std::move(text);
    draw(true);
}

void progress::advance(double amount) {
    done_ += amount;
    draw(false);
}

void progress::wipe() {
    if (!shown_) return;
    fmt::print(stderr, "\r\033[K");
    std::fflush(stderr);
    shown_ = false;
}

void progress::draw(bool now) {
    using namespace std::chrono_literals;
    if (!on_terminal_) return;
    auto const time = std::chrono::steady_clock::now();
    if (!now && time - drawn_ < 100ms) return;
    drawn_ = time;

    constexpr int width = 28;
    double const part   = total_ > 0 ? std::clamp(done_ / total_, 0.0, 1.0) : 0.0;
    auto const full     = static_cast<int>(part * width);
    fmt::print(stderr, "\r\033[K[{:#<{}}{:.<{}}] {:3.0f}%  {:.0f} s  {}", "", full, "", width - full, 100 * part,
               std::chrono::duration<double>(time - start_).count(), label_);
    std::fflush(stderr);
    shown_ = true;
}

} // namespace bench
