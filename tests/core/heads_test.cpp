// SPDX-License-Identifier: MIT
#include <butterfly/core/heads.hpp>

#include "support/catch.hpp"

#include <vector>

namespace bf = butterfly;

namespace {

template <class F>
std::string message(F const& f) {
    try {
        f();
    } catch (bf::shape_error const& e) {
        return e.what();
    }
    return "accepted";
}

} // namespace

TEST_CASE("a view finds its rows in any layout", "[core]") {
    std::vector<float> data(2 * 3 * 4);
    for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i);
    bf::heads_view<float> const plain(data.data(), {.heads = 2, .tokens = 3, .head_dim = 4});
    REQUIRE(plain.row(1, 2)[3] == 23.0F);
    REQUIRE(plain.row(1, 0).size() == 4);
    bf::heads_view<float> const engine(data.data(), {2, 3, 4}, {.head = 4, .token = 8}); // [tokens, heads, head_dim]
    REQUIRE(engine.row(1, 2)[3] == 23.0F);
    REQUIRE(engine.row(1, 0)[0] == 4.0F);
    REQUIRE(engine.row(0, 1)[0] == 8.0F);

    bf::heads_view<float const> const fixed = engine; // const from mutable, and not back
    REQUIRE(fixed.row(0, 1).data() == engine.row(0, 1).data());
    static_assert(!std::is_convertible_v<bf::heads_view<float const>, bf::heads_view<float>>);

    auto const part = plain.slice(1, 2);
    REQUIRE(part.shape() == bf::heads_shape{2, 2, 4});
    REQUIRE(part.row(1, 1)[0] == plain.row(1, 2)[0]);
    REQUIRE(plain.slice(3, 0).tokens() == 0);
}

TEST_CASE("a slice stays inside", "[core]") {
    float x[12]{};
    bf::heads_view<float> const v(x, {1, 3, 4});
    REQUIRE(message([&] { static_cast<void>(v.slice(2, 2)); }) == "slice: tokens [2, 2 + 2) of a view with 3");
    REQUIRE(message([&] { static_cast<void>(v.slice(-1, 1)); }) == "slice: tokens [-1, -1 + 1) of a view with 3");
    REQUIRE(message([&] { static_cast<void>(v.slice(0, -1)); }) == "slice: tokens [0, 0 + -1) of a view with 3");
    REQUIRE(message([&] { static_cast<void>(v.slice(1, std::numeric_limits<bf::index_t>::max())); }) != "accepted");
}

TEST_CASE("shapes that cannot be are refused", "[core]") {
    constexpr bf::index_t big = bf::index_t{1} << 40;
    using view                = bf::heads_view<float>;
    REQUIRE(message([] { view(nullptr, {-1, 2, 3}); }) == "shape [-1, 2, 3] has a negative size");
    REQUIRE(message([] { view(nullptr, {1, 2, -3}); }) == "shape [1, 2, -3] has a negative size");
    REQUIRE(message([] { view(nullptr, {big, big, 1}); }) == "shape [1099511627776, 1099511627776, 1] overflows");
    REQUIRE(message([] {
                view(nullptr, {1, big, big}, {0, 0});
            }) == "shape [1, 1099511627776, 1099511627776] overflows");
    REQUIRE(message([] {
                view(nullptr, {1, bf::index_t{1} << 60, 1});
            }) == "shape [1, 1152921504606846976, 1] overflows");
    REQUIRE(message([] { view(nullptr, {0, big, big}); }) == "accepted"); // nothing is nothing
    REQUIRE(message([] { bf::heads_buffer<float>({1, -2, 3}); }) == "shape [1, -2, 3] has a negative size");
}

TEST_CASE("a buffer is zero, aligned and its own", "[core]") {
    bf::heads_buffer<bf::float16> a({2, 3, 5});
    REQUIRE(reinterpret_cast<std::uintptr_t>(a.values().data()) % 64 == 0);
    for (auto const x : a.values()) REQUIRE(x.bits == 0);
    a.view().row(1, 2)[4]           = bf::float16(2.0F);
    bf::heads_buffer<bf::float16> b = a;
    b.view().row(0, 0)[0]           = bf::float16(1.0F);
    REQUIRE(a.values()[0].bits == 0);
    REQUIRE(static_cast<float>(b.values()[29]) == 2.0F);
    bf::heads_buffer<bf::float16> c = std::move(b);
    REQUIRE(c.shape() == bf::heads_shape{2, 3, 5});
    REQUIRE(b.shape() == bf::heads_shape{}); // NOLINT: a moved-from buffer is empty
    a = c;
    REQUIRE(static_cast<float>(a.values()[0]) == 1.0F);
    REQUIRE(bf::heads_buffer<float>({3, 0, 5}).values().empty());
}

TEST_CASE("a view describes itself as plain data", "[core]") {
    bf::bfloat16 x[8]{};
    bf::heads_view<bf::bfloat16 const> const v(x, {1, 2, 3}, {.head = 8, .token = 4});
    bf::tensor_ref const t = v.describe();
    REQUIRE(t.type == bf::element_type::bf16);
    REQUIRE(t.shape == bf::heads_shape{1, 2, 3});
    REQUIRE(t.strides == bf::heads_strides{8, 4});
    REQUIRE(bf::host_pointer<bf::bfloat16>(t.memory) == x);
    REQUIRE(bf::host_pointer<bf::bfloat16>(bf::memory_ref(x, 6)) == x + 3);
    REQUIRE(bf::host_pointer<float>(bf::memory_ref()) == nullptr);
    REQUIRE_FALSE(static_cast<bool>(bf::memory_ref(nullptr)));
}

TEST_CASE("integer helpers say where they overflow", "[core]") {
    constexpr bf::index_t top = std::numeric_limits<bf::index_t>::max();
    REQUIRE(bf::detail::ceil_div(0, 5) == 0);
    REQUIRE(bf::detail::ceil_div(10, 5) == 2);
    REQUIRE(bf::detail::ceil_div(11, 5) == 3);
    REQUIRE(bf::detail::ceil_div(top, 2) == top / 2 + 1);
    REQUIRE(bf::detail::round_up(13, 8) == 16);
    REQUIRE(bf::detail::round_down(13, 8) == 8);
    REQUIRE(bf::detail::try_multiply(top, 1) == top);
    REQUIRE(bf::detail::try_multiply(top, 0) == 0);
    REQUIRE(bf::detail::try_multiply(top / 2 + 1, 2) == -1);
    REQUIRE(bf::detail::try_multiply(-1, 2) == -1);
    REQUIRE(message([] { static_cast<void>(bf::detail::checked_multiply(top, 2, "rows")); }) ==
            "rows: 9223372036854775807 x 2 overflows");
}
