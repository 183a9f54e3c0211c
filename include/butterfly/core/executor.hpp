// SPDX-License-Identifier: MIT
#pragma once

// Threads belong to the caller; an executor says which of them do the work of a call.
//
//   serial{}                                    the calling thread
//   openmp{.threads = 8}                        an OpenMP team (only where the translation unit has OpenMP)
//   share{.thread = i, .threads = n, .barrier}  every worker of an engine makes the same call; each does its part
//
// An executor is a small value and a member of the host policies, never a template parameter. Which thread runs an item
// never changes a result.

#include <butterfly/core/index.hpp>

#include <atomic>
#include <memory>
#include <string>
#include <type_traits>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace butterfly {

namespace detail {

/// Some tens of cycles (140 on some CPUs) for who spins, which leave the core to another thread of it where there is
/// one.
inline void pause() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

} // namespace detail

/// A barrier of the caller's: `wait(context, threads)` returns once `threads` participants have called it.
struct barrier_ref {
    void* context                     = nullptr;
    void (*wait)(void*, int) noexcept = nullptr;
    void** board                      = nullptr; // where one participant leaves a pointer for the others; null: none
};

/// A barrier for engines whose operations get (thread, threads) and no barrier: a counter in the caller's memory,
/// shared by the participants of one call at a time. The number of participants comes with the call.
class meeting {
public:
    meeting() noexcept                 = default;
    meeting(meeting const&)            = delete;
    meeting& operator=(meeting const&) = delete;

    /// Returns once `threads` participants have arrived. Reusable at once.
    void wait(int threads) noexcept {
        unsigned const now = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.fetch_add(1, std::memory_order_acq_rel);
            round_.notify_all();
            return;
        }
        for (int spin = 0; spin < 4096; ++spin) { // longer than a small call; to be woken takes as long
            if (round_.load(std::memory_order_acquire) != now) return;
            detail::pause();
        }
        while (round_.load(std::memory_order_acquire) == now) round_.wait(now, std::memory_order_acquire);
    }

    operator barrier_ref() noexcept {
        return {this, [](void* self, int threads) noexcept { static_cast<meeting*>(self)->wait(threads); }, &board_};
    }

private:
    std::atomic<int> arrived_{0};
    std::atomic<unsigned> round_{0};
    void* board_ = nullptr;
};

/// The calling thread does everything.
struct serial {};

/// The calling thread is worker `thread` of `threads` that all make the same call with the same arguments.
/// Items are dealt in turns, back and forth. A barrier without a board needs `options.workspace`.
struct share {
    int thread  = 0;
    int threads = 1;
    barrier_ref barrier{};
};

/// Type-erased executor; see the top of this file. Its text is the same with and without OpenMP, so objects compiled
/// either way can be linked: an OpenMP team comes as a function pointer, from a translation unit that has OpenMP.
class executor {
public:
    executor() noexcept = default;
    executor(serial) noexcept {}
    /// Throws shape_error where thread is not in [0, threads) or several threads come without a barrier.
    executor(share s) : kind_(kind::share), thread_(s.thread), threads_(s.threads), barrier_(s.barrier) {
        if (s.threads < 1 || s.thread < 0 || s.thread >= s.threads)
            detail::fail<shape_error>("share: thread " + std::to_string(s.thread) + " of " + std::to_string(s.threads));
        if (s.threads > 1 && s.barrier.wait == nullptr)
            detail::fail<shape_error>("share: " + std::to_string(s.threads) + " threads need a barrier");
    }

    /// Participants of a call.
    [[nodiscard]] int threads() const noexcept { return threads_; }

    /// "serial", "openmp x8" or "share 2/8".
    [[nodiscard]] std::string name() const {
        if (kind_ == kind::share) return "share " + std::to_string(thread_) + "/" + std::to_string(threads_);
        if (kind_ == kind::openmp) return "openmp x" + std::to_string(threads_);
        return "serial";
    }

    /// Calls f(item, thread) for every item in [0, items), thread in [0, threads()). Returns, on every participant,
    /// only after all items are done. f must not throw.
    template <class F>
    void each(index_t items, F const& f) const noexcept {
        static_assert(std::is_invocable_v<F const&, index_t, int>);
        if (kind_ == kind::share) {
            deal(items, f);
            wait();
            return;
        }
        if (kind_ == kind::openmp && threads_ > 1 && items > 1) {
            team_(threads_, items, std::addressof(f), [](void const* body, index_t item, int thread) noexcept {
                (*static_cast<F const*>(body))(item, thread);
            });
            return;
        }
        for (index_t item = 0; item < items; ++item) f(item, 0);
    }

    /// The item that who does `item` does next: as they are dealt in a share, and most likely in an OpenMP team. It may
    /// be beyond the last one.
    [[nodiscard]] index_t after(index_t item) const noexcept {
        if (kind_ != kind::share) return item + threads_;
        index_t const turn = item % threads_;
        return item - turn + 2 * threads_ - 1 - turn; // back and forth
    }

    /// True on the one participant that does what must be done once.
    [[nodiscard]] bool first() const noexcept { return thread_ == 0; }

    /// True where a pointer can be handed to all participants.
    [[nodiscard]] bool can_publish() const noexcept {
        return kind_ != kind::share || threads_ == 1 || barrier_.board != nullptr;
    }

    /// The pointer given by the first participant, on all of them.
    [[nodiscard]] void* publish(void* pointer) const noexcept {
        if (kind_ != kind::share || threads_ == 1) return pointer;
        if (first()) *barrier_.board = pointer;
        wait();
        void* const seen = *barrier_.board;
        wait();
        return seen;
    }

    /// Waits for the other participants of a share; nothing elsewhere.
    void wait() const noexcept {
        if (kind_ == kind::share && threads_ > 1) barrier_.wait(barrier_.context, threads_);
    }

private:
    friend struct openmp;

    enum class kind { serial, openmp, share };

    /// Calls body(context, item, thread) for every item, on `threads` threads.
    using body_function = void (*)(void const* context, index_t item, int thread) noexcept;
    using team_function = void (*)(int threads, index_t items, void const* context, body_function body) noexcept;

    executor(team_function team, int threads) noexcept : kind_(kind::openmp), threads_(threads), team_(team) {}

    template <class F>
    void deal(index_t items, F const& f) const noexcept {
        for (index_t round = 0; round * threads_ < items; ++round) {
            index_t const turn = round % 2 == 0 ? thread_ : threads_ - 1 - thread_;
            index_t const item = round * threads_ + turn;
            if (item < items) f(item, thread_);
        }
    }

    kind kind_   = kind::serial;
    int thread_  = 0;
    int threads_ = 1;
    barrier_ref barrier_{};
    team_function team_ = nullptr; // of kind openmp
};

#if defined(_OPENMP)
/// An OpenMP team of `threads` (0: OpenMP's own default). Items are dealt as threads become free.
struct openmp {
    int threads = 0;

    operator executor() const noexcept { return {&run, threads > 0 ? threads : omp_get_max_threads()}; }

private:
    static void run(int team, index_t items, void const* context, executor::body_function body) noexcept {
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
        for (index_t item = 0; item < items; ++item) body(context, item, omp_get_thread_num());
    }
};
#endif

} // namespace butterfly
