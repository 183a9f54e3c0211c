// SPDX-License-Identifier: MIT
#include "pool.hpp"

#include <exception>
#include <thread>

namespace bench {
namespace {

class pooled_machine final : public machine_interface {
public:
    pooled_machine(backend_entry const& backend, int threads) : alone_(backend.make(bf::serial{})) {
        for (int i = 0; i < threads; ++i)
            members_.push_back(backend.make(bf::share{.thread = i, .threads = threads, .barrier = within_}));
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
    }
    ~pooled_machine() override {
        job_ = {};
        between_.wait(size());
        for (std::thread& w : workers_) w.join();
    }

    [[nodiscard]] std::string name() const override { return alone_.name(); }
    [[nodiscard]] bool available() const override { return alone_.available(); }
    [[nodiscard]] bf::bound_codec bind(std::type_index type, void const* codec) const override {
        return alone_.behind().bind(type, codec);
    }
    [[nodiscard]] bf::support supports(bf::problem const& p) const override { return first().supports(p); }
    [[nodiscard]] std::string explain(bf::problem const& p) const override { return first().explain(p); }
    [[nodiscard]] index_t workspace_bytes(std::span<bf::problem const> problems) const override {
        return first().workspace_bytes(problems);
    }
    void run(std::span<bf::problem const> problems) const override {
        if (problems.empty()) return;
        job_ = problems;
        between_.wait(size());
        std::exception_ptr error;
        try {
            first().run(problems);
        } catch (...) { // all participants throw the same
            error = std::current_exception();
        }
        between_.wait(size()); // nobody reads the problems any more
        if (error) std::rethrow_exception(error);
    }
    [[nodiscard]] index_t update_bytes(bf::cache_update const& u) const override {
        return alone_.behind().update_bytes(u);
    }
    void update(bf::cache_update const& u,
                std::span<std::byte> workspace,
                std::function<void()> const& commit) const override {
        alone_.behind().update(u, workspace, commit);
    }

private:
    [[nodiscard]] int size() const noexcept { return static_cast<int>(members_.size()); }
    [[nodiscard]] machine_interface const& first() const noexcept { return members_[0].behind(); }

    /// Makes the calls of run until there are no problems.
    void work(int thread) const {
        while (true) {
            between_.wait(size());
            if (job_.empty()) return;
            try {
                members_[static_cast<std::size_t>(thread)].behind().run(job_);
            } catch (...) { // run tells the caller
            }
            between_.wait(size());
        }
    }

    machine alone_;
    mutable bf::meeting within_;  // a call
    mutable bf::meeting between_; // calls
    mutable std::span<bf::problem const> job_{};
    std::vector<machine> members_;
    std::vector<std::thread> workers_;
};

} // namespace

machine make_pooled_machine(backend_entry const& backend, int threads, bf::executor const& executor) {
    return {executor, std::make_shared<pooled_machine const>(backend, threads)};
}

} // namespace bench
