// SPDX-License-Identifier: MIT
#include <butterfly/core/executor.hpp>

#include "support/catch.hpp"
#include "support/on_threads.hpp"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

namespace bf = butterfly;
using bf::testing::on_threads;

namespace {

/// Every item once, by a thread in range, and none after `each` has returned.
struct tally {
    std::unique_ptr<std::atomic<int>[]> done;
    std::atomic<int> strangers{0};
    bf::index_t items;

    explicit tally(bf::index_t n) : done(new std::atomic<int>[static_cast<std::size_t>(n) + 1] {}), items(n) {}

    void run(bf::executor const& e) {
        e.each(items, [&](bf::index_t item, int thread) noexcept {
            if (item < 0 || item >= items || thread < 0 || thread >= e.threads())
                ++strangers;
            else
                ++done[static_cast<std::size_t>(item)];
        });
    }

    [[nodiscard]] bool all(int times) const {
        bool same = strangers == 0;
        for (bf::index_t i = 0; i < items; ++i) same &= done[static_cast<std::size_t>(i)] == times;
        return same;
    }
};

} // namespace

TEST_CASE("serial does every item in order", "[core]") {
    bf::executor const e;
    std::vector<bf::index_t> order;
    e.each(5, [&](bf::index_t item, int thread) noexcept {
        order.push_back(item);
        REQUIRE(thread == 0);
    });
    REQUIRE(order == std::vector<bf::index_t>{0, 1, 2, 3, 4});
    REQUIRE(e.threads() == 1);
    REQUIRE(e.name() == "serial");
    REQUIRE(e.first());
    REQUIRE(e.can_publish());
    int x = 0;
    REQUIRE(e.publish(&x) == &x);
    e.each(0, [](bf::index_t, int) noexcept { FAIL("an item of none"); });
}

#if defined(_OPENMP)
TEST_CASE("an OpenMP team does every item once", "[core]") {
    for (int const threads : {1, 2, 7})
        for (bf::index_t const items : {0, 1, 2, 100}) {
            bf::executor const e = bf::openmp{.threads = threads};
            REQUIRE(e.threads() == threads);
            tally t(items);
            t.run(e);
            REQUIRE(t.all(1));
        }
    REQUIRE(bf::executor(bf::openmp{.threads = 3}).name() == "openmp x3");
    REQUIRE(bf::executor(bf::openmp{}).threads() >= 1);
}
#endif

TEST_CASE("threads that share a call do every item once, and leave together", "[core]") {
    for (int const threads : {1, 2, 5})
        for (bf::index_t const items : {0, 1, 4, 5, 6, 103}) {
            tally t(items);
            bf::meeting place;
            std::atomic<int> early{0};
            on_threads(threads, [&](int i) {
                bf::executor const e = bf::share{.thread = i, .threads = threads, .barrier = place};
                for (int round = 1; round <= 20; ++round) {
                    t.run(e);
                    if (!t.all(round)) ++early; // someone returned before all items were done
                    e.wait();
                }
            });
            REQUIRE(early == 0);
            REQUIRE(t.all(20));
        }
}

TEST_CASE("items of a share are dealt back and forth, so that falling costs even out", "[core]") {
    bf::barrier_ref const nobody{.context = nullptr, .wait = [](void*, int) noexcept {}};
    for (int const thread : {0, 1, 2}) {
        std::vector<bf::index_t> mine;
        bf::executor const e = bf::share{.thread = thread, .threads = 3, .barrier = nobody};
        e.each(8, [&](bf::index_t item, int) noexcept { mine.push_back(item); });
        std::vector<bf::index_t> const wanted[] = {{0, 5, 6}, {1, 4, 7}, {2, 3}};
        REQUIRE(mine == wanted[thread]);
    }
}

TEST_CASE("who does an item of a share knows the next one", "[core]") {
    bf::barrier_ref const nobody{.context = nullptr, .wait = [](void*, int) noexcept {}};
    for (int const threads : {1, 2, 3, 4})
        for (int thread = 0; thread < threads; ++thread) {
            bf::executor const e = bf::share{.thread = thread, .threads = threads, .barrier = nobody};
            bf::index_t next     = thread;
            e.each(20, [&](bf::index_t item, int) noexcept {
                REQUIRE(item == next);
                next = e.after(item);
            });
            REQUIRE(next >= 20);
        }
    REQUIRE(bf::executor(bf::serial{}).after(5) == 6);
}

TEST_CASE("a pointer of the first participant reaches all", "[core]") {
    bf::meeting place;
    int values[3] = {1, 2, 3};
    std::atomic<int> wrong{0};
    on_threads(3, [&](int i) {
        bf::executor const e = bf::share{.thread = i, .threads = 3, .barrier = place};
        for (int round = 0; round < 50; ++round) {
            void* const mine = e.first() ? &values[round % 3] : nullptr;
            if (e.publish(mine) != &values[round % 3]) ++wrong;
        }
    });
    REQUIRE(wrong == 0);
    bf::barrier_ref const bare{.context = nullptr, .wait = [](void*, int) noexcept {}};
    REQUIRE_FALSE(bf::executor(bf::share{.thread = 0, .threads = 2, .barrier = bare}).can_publish());
    REQUIRE(bf::executor(bf::share{.thread = 0, .threads = 1, .barrier = bare}).can_publish());
}

TEST_CASE("the number of participants comes with the call", "[core]") {
    bf::meeting place;
    for (int const threads : {2, 4, 3}) {
        std::atomic<int> inside{0}, wrong{0};
        on_threads(threads, [&](int) {
            for (int round = 1; round <= 100; ++round) {
                ++inside;
                place.wait(threads);
                if (inside != round * threads) ++wrong;
                place.wait(threads);
            }
        });
        REQUIRE(wrong == 0);
    }
}

TEST_CASE("a share that cannot be is refused", "[core]") {
    auto const message = [](bf::share s) -> std::string {
        try {
            bf::executor const e(s);
            return e.name();
        } catch (bf::shape_error const& e) {
            return e.what();
        }
    };
    bf::meeting place;
    REQUIRE(message({.thread = 2, .threads = 2, .barrier = place}) == "share: thread 2 of 2");
    REQUIRE(message({.thread = -1, .threads = 2, .barrier = place}) == "share: thread -1 of 2");
    REQUIRE(message({.thread = 0, .threads = 0, .barrier = place}) == "share: thread 0 of 0");
    REQUIRE(message({.thread = 0, .threads = 2}) == "share: 2 threads need a barrier");
    REQUIRE(message({.thread = 1, .threads = 2, .barrier = place}) == "share 1/2");
}
