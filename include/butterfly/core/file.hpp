// SPDX-License-Identifier: MIT
#pragma once

// C files that close themselves, the bytes of a file, and one that takes another's place only once it is whole.

#include <butterfly/core/error.hpp>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>
#if defined(__unix__) || defined(__APPLE__)
#include <sys/stat.h>

#include <cstdlib>
#endif

namespace butterfly::detail {

struct file_closer {
    void operator()(std::FILE* file) const noexcept { std::fclose(file); }
};

using file_handle = std::unique_ptr<std::FILE, file_closer>;

/// A copy of a file that is not empty. Throws format_error, beginning with `who`, with the system's words.
[[nodiscard]] inline std::vector<std::byte> read_file(std::string const& who, std::string const& path) {
    file_handle const file(std::fopen(path.c_str(), "rb"));
    if (file == nullptr) fail<format_error>(who + ": cannot read " + path + ": " + std::strerror(errno));
    std::vector<std::byte> bytes;
    std::size_t got = 0;
    do {
        std::size_t const size = bytes.size();
        bytes.resize(size + (std::size_t{1} << 20));
        got = std::fread(bytes.data() + size, 1, bytes.size() - size, file.get());
        bytes.resize(size + got);
    } while (got > 0);
    if (std::ferror(file.get()) != 0) fail<format_error>(who + ": cannot read " + path + ": " + std::strerror(errno));
    if (bytes.empty()) fail<format_error>(who + ": cannot read " + path + ": the file is empty");
    return bytes;
}

/// A file written to `path`.part and renamed by commit(); without it nothing is left. It has the permissions of a new
/// file. Where `path` is a link, what it points to is replaced. What a machine that loses its power keeps is the file
/// system's affair: nothing waits for the disk. Throws format_error, beginning with `who`: where there
/// is a `path`.part already, where `path` is there and no regular file or a link to nothing, and with the system's
/// words where it fails.
class replacement_file {
public:
    replacement_file(std::string who, std::string path) : who_(std::move(who)), path_(std::move(path)) {
        follow();
        part_ = path_ + ".part";
        file_.reset(std::fopen(part_.c_str(), "wbx"));
        if (file_ == nullptr)
            bad(part_, errno == EEXIST ? "it is there: another is writing it, or was cut off and it may be removed"
                                       : std::strerror(errno));
    }

    replacement_file(replacement_file const&)            = delete;
    replacement_file& operator=(replacement_file const&) = delete;

    ~replacement_file() {
        file_.reset();
        if (!committed_) std::remove(part_.c_str());
    }

    void write(std::span<std::byte const> bytes) {
        if (!bytes.empty() && std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) != bytes.size())
            bad(path_, std::strerror(errno));
    }

    void commit() {
        if (std::fclose(file_.release()) != 0 || std::rename(part_.c_str(), path_.c_str()) != 0)
            bad(path_, std::strerror(errno));
        committed_ = true;
    }

private:
    /// Makes path_ what is replaced. Where the system has no links and devices as Unix has, that is path_.
    void follow() {
#if defined(__unix__) || defined(__APPLE__)
        struct stat there {};
        if (::stat(path_.c_str(), &there) != 0) {
            if (::lstat(path_.c_str(), &there) == 0) bad(path_, "a link to nothing");
            return;
        }
        if (!S_ISREG(there.st_mode)) bad(path_, "no regular file");
        std::unique_ptr<char, void (*)(void*)> const target(::realpath(path_.c_str(), nullptr), std::free);
        if (target == nullptr) bad(path_, std::strerror(errno));
        path_ = target.get();
#endif
    }

    [[noreturn]] void bad(std::string const& file, char const* why) const {
        fail<format_error>(who_ + ": cannot write " + file + ": " + why);
    }

    std::string who_, path_, part_{};
    file_handle file_{};
    bool committed_ = false;
};

} // namespace butterfly::detail
