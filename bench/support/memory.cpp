// SPDX-License-Identifier: MIT
#include "memory.hpp"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <fstream>
#include <stdexcept>

extern char** environ;

namespace bench {
namespace {

/// The value of a line "Name:   123 kB", in bytes.
std::optional<index_t> kilobytes(char const* path, std::string_view name) {
    std::ifstream in(path);
    for (std::string line; std::getline(in, line);)
        if (line.starts_with(name)) return std::stoll(line.substr(name.size())) * 1024;
    return std::nullopt;
}

/// Everything that arrives at a pipe until it closes.
std::string read_all(int fd) {
    std::string text;
    std::array<char, 4096> buffer;
    while (true) {
        ssize_t const n = ::read(fd, buffer.data(), buffer.size());
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return text;
        text.append(buffer.data(), static_cast<std::size_t>(n));
    }
}

} // namespace

std::optional<index_t> resident_bytes() {
    return kilobytes("/proc/self/status", "RssAnon:");
}

std::optional<index_t> available_memory() {
    return kilobytes("/proc/meminfo", "MemAvailable:");
}

index_t total_memory() {
    long const pages = ::sysconf(_SC_PHYS_PAGES);
    long const size  = ::sysconf(_SC_PAGESIZE);
    return pages > 0 && size > 0 ? static_cast<index_t>(pages) * size : 0;
}

std::string run_self(std::vector<std::string> const& arguments) {
    std::array<int, 2> pipe{};
    if (::pipe(pipe.data()) != 0) throw std::runtime_error(fmt::format("pipe: {}", std::strerror(errno)));
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, pipe[1], STDOUT_FILENO);
    ::posix_spawn_file_actions_addclose(&actions, pipe[0]);
    ::posix_spawn_file_actions_addclose(&actions, pipe[1]);

    std::string self               = "/proc/self/exe";
    std::vector<std::string> words = arguments;
    std::vector<char*> argv{self.data()};
    for (std::string& w : words) argv.push_back(w.data());
    argv.push_back(nullptr);

    pid_t child     = 0;
    int const error = ::posix_spawn(&child, self.c_str(), &actions, nullptr, argv.data(), environ);
    ::posix_spawn_file_actions_destroy(&actions);
    ::close(pipe[1]);
    std::string const text = error == 0 ? read_all(pipe[0]) : std::string();
    ::close(pipe[0]);
    if (error != 0) throw std::runtime_error(fmt::format("a child process did not start: {}", std::strerror(error)));

    int status = 0;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        throw std::runtime_error(WIFSIGNALED(status)
                                     ? fmt::format("the child process was ended by signal {}", WTERMSIG(status))
                                     : fmt::format("the child process failed with status {}", WEXITSTATUS(status)));
    return text;
}

} // namespace bench
