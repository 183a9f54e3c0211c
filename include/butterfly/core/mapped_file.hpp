// SPDX-License-Identifier: MIT
#pragma once

// The bytes of a file, read when they are looked at: a private read-only mapping where the system is POSIX, else a copy
// in memory.
//
// Nobody may write to a file or cut it while it is mapped: its bytes would change under the reader, and those cut off
// raise SIGBUS. A file that is replaced (replacement_file) is another file; the mapping keeps the old one.

#include <butterfly/core/file.hpp>

#include <span>
#include <string>
#if defined(__unix__) || defined(__APPLE__)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#endif

namespace butterfly::detail {

#if defined(__unix__) || defined(__APPLE__)

/// A regular file that is not empty, mapped. Throws format_error, beginning with `who`, with the reason.
class mapped_file {
public:
    mapped_file(std::string const& who, std::string const& path) {
        // Without O_NONBLOCK a pipe would be waited for; regular files do not mind.
        int const file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (file < 0) fail<format_error>(who + ": cannot read " + path + ": " + std::strerror(errno));
        std::string const wrong = map(file);
        ::close(file); // the mapping stays
        if (!wrong.empty()) fail<format_error>(who + ": cannot read " + path + ": " + wrong);
    }

    mapped_file(mapped_file const&)            = delete;
    mapped_file& operator=(mapped_file const&) = delete;
    ~mapped_file() { ::munmap(address_, size_); }

    [[nodiscard]] std::span<std::byte const> bytes() const noexcept {
        return {static_cast<std::byte const*>(address_), size_};
    }

private:
    /// Why the file cannot be mapped; empty once it is.
    [[nodiscard]] std::string map(int file) {
        struct stat there {};
        if (::fstat(file, &there) != 0) return std::strerror(errno);
        if (!S_ISREG(there.st_mode)) return S_ISDIR(there.st_mode) ? "a folder" : "no regular file";
        if (there.st_size == 0) return "the file is empty";
        if (static_cast<std::uintmax_t>(there.st_size) > static_cast<std::uintmax_t>(PTRDIFF_MAX))
            return "the file is too large to be mapped";
        size_    = static_cast<std::size_t>(there.st_size);
        address_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
        return address_ == MAP_FAILED ? std::strerror(errno) : "";
    }

    void* address_    = nullptr;
    std::size_t size_ = 0;
};

#else

/// A file that is not empty, in memory. Throws format_error, beginning with `who`, with the reason.
class mapped_file {
public:
    mapped_file(std::string const& who, std::string const& path) : bytes_(read_file(who, path)) {}

    [[nodiscard]] std::span<std::byte const> bytes() const noexcept { return bytes_; }

private:
    std::vector<std::byte> bytes_;
};

#endif

} // namespace butterfly::detail
