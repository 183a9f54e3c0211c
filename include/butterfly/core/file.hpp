// SPDX-License-Identifier: MIT
#pragma once

// A C file that closes itself, also where reading or writing throws.

#include <cstdio>
#include <memory>

namespace butterfly::detail {

struct file_closer {
    void operator()(std::FILE* file) const noexcept { std::fclose(file); }
};

using file_handle = std::unique_ptr<std::FILE, file_closer>;

} // namespace butterfly::detail
