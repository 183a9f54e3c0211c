// SPDX-License-Identifier: MIT

// The published quantizers against outputs of the published code (tests/data/quant), and what is stated about them
// where that code defines nothing. Left out: the published scores of uniform_4b, turbo_kv_1b and turbo_kv_2b, which
// have formulas of their own (queries of 8 bits or of signs).

#include <butterfly/quant/published/mixed.hpp>
#include <butterfly/quant/published/turbo_kv.hpp>
#include <butterfly/quant/published/turbo_kv_outliers.hpp>
#include <butterfly/quant/published/turbo_kv_signs.hpp>
#include <butterfly/quant/published/uniform.hpp>
#include <butterfly/quant/published/values.hpp>

#include "support/catch.hpp"
#include "support/npy.hpp"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <string_view>
#include <tuple>

namespace bf = butterfly;

namespace published_rows { // names of its own, for builds that compile several of these files as one

namespace published = butterfly::quant::published;
namespace testing   = butterfly::testing;

namespace {

using bytes  = std::vector<std::byte>;
using floats = std::vector<float>;

using all_types = std::tuple<published::uniform_2b,
                             published::uniform_3b,
                             published::uniform_4b,
                             published::mixed_4b8,
                             published::turbo_kv_3b,
                             published::turbo_kv_4b,
                             published::turbo_kv_5b,
                             published::turbo_kv_5b_fast,
                             published::turbo_kv_4bo,
                             published::turbo_kv_3bo,
                             published::turbo_kv_1b,
                             published::turbo_kv_2b,
                             published::v_q4,
                             published::v_q2>;

constexpr bool is_value_format(std::string_view name) {
    return name.starts_with("v_");
}

/// Types whose published score is something else than a product with the decoded row, or that have none.
constexpr bool scores_otherwise(std::string_view name) {
    return is_value_format(name) || name == "uniform_4b" || name == "turbo_kv_1b" || name == "turbo_kv_2b";
}

template <class Codec>
bytes encoded(floats const& x, std::byte before = std::byte{0x5a}) {
    bytes row(static_cast<std::size_t>(Codec{}.row_bytes(std::ssize(x))), before);
    Codec{}.encode(x.data(), std::ssize(x), row.data());
    return row;
}

template <class Codec>
floats decoded(bytes const& row, bf::index_t head_dim) {
    floats out(static_cast<std::size_t>(head_dim));
    Codec{}.decode(row.data(), head_dim, out.data());
    return out;
}

template <class Codec>
floats round_trip(floats const& x) {
    return decoded<Codec>(encoded<Codec>(x), std::ssize(x));
}

floats normal(bf::index_t n, unsigned seed, float mean = 0.0F, float deviation = 1.0F) {
    std::mt19937 random(seed);
    std::normal_distribution<float> of(mean, deviation);
    floats x(static_cast<std::size_t>(n));
    for (float& v : x) v = of(random);
    return x;
}

/// Mean of |x - y|^2 / |x|^2 over many rows.
template <class Codec>
double relative_error(bf::index_t n, float mean = 0.0F, float deviation = 1.0F) {
    double error = 0.0, size = 0.0;
    for (unsigned row = 0; row < 400; ++row) {
        floats const x = normal(n, row, mean, deviation);
        floats const y = round_trip<Codec>(x);
        for (std::size_t i = 0; i < x.size(); ++i) {
            error += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
            size += std::pow(static_cast<double>(x[i]), 2);
        }
    }
    return error / size;
}

/// One case of the data with its arrays.
struct recorded {
    std::string type, kind;
    bf::index_t head_dim, row, index;
    bytes packed;
    std::vector<bool> known; // of each byte
    bool has_decoded;
    std::vector<double> scores;

    explicit recorded(nlohmann::json const& c)
        : type(c.at("type")), kind(c.at("kind")), head_dim(c.at("head_dim")), row(c.at("row")), index(c.at("index")),
          has_decoded(c.at("decoded")), scores(c.value("scores", std::vector<double>{})) {
        auto const hex = c.at("packed").get<std::string>();
        for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
            unsigned value = 0;
            known.push_back(std::from_chars(hex.data() + i, hex.data() + i + 2, value, 16).ec == std::errc{});
            packed.push_back(static_cast<std::byte>(value));
        }
    }

    [[nodiscard]] std::string file(std::string const& name) const {
        return "quant/" + name + "_" + std::to_string(head_dim) + ".npy";
    }
};

std::vector<recorded> const& all_cases() {
    static auto const cases = [] {
        std::vector<recorded> all;
        for (auto const& c : testing::read_cases("quant/cases.json")) all.emplace_back(c);
        return all;
    }();
    return cases;
}

template <class F>
void for_each_case(std::string_view type, F const& f) {
    std::set<std::pair<bf::index_t, std::string>> seen;
    for (recorded const& c : all_cases()) {
        if (c.type != type) continue;
        CAPTURE(c.type, c.kind, c.head_dim, c.row);
        f(c);
        seen.insert({c.head_dim, c.kind});
    }
    REQUIRE(seen.size() == (is_value_format(type) ? 30U : 34U)); // no value format was recorded raw
}

floats row_of(std::string const& file, bf::index_t head, bf::index_t row) {
    static std::map<std::string, bf::heads_buffer<float>> files;
    auto it = files.find(file);
    if (it == files.end()) it = files.emplace(file, testing::read_npy(file)).first;
    auto const r = it->second.view().row(head, row);
    return {r.begin(), r.end()};
}

std::uint32_t bits(float x) {
    return std::bit_cast<std::uint32_t>(x);
}

double dot(floats const& a, floats const& b) {
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
    return sum;
}

std::uint32_t from_hex(nlohmann::json const& text) {
    return static_cast<std::uint32_t>(std::stoul(text.get<std::string>(), nullptr, 16));
}

} // namespace

TEST_CASE("halves are cut off, flushed and saturated as published", "[quant]") {
    namespace detail = published::detail;
    for (auto const& c : testing::read_cases("quant/halves.json")) {
        auto const half = static_cast<std::uint16_t>(from_hex(c.at("half")));
        CAPTURE(c.dump());
        if (c.contains("float")) REQUIRE(detail::to_half(std::bit_cast<float>(from_hex(c.at("float")))) == half);
        REQUIRE(bits(detail::from_half(half)) == from_hex(c.at("read")));
    }
}

TEMPLATE_LIST_TEST_CASE("packed bytes are the published ones", "[quant]", all_types) {
    for_each_case(TestType::name(), [](recorded const& c) {
        REQUIRE(TestType{}.row_bytes(c.head_dim) == std::ssize(c.packed));
        if (c.kind == "raw") return;
        bytes const row = encoded<TestType>(row_of(c.file("x"), 0, c.row));
        for (std::size_t i = 0; i < row.size(); ++i) {
            CAPTURE(i);
            if (c.known[i]) REQUIRE(row[i] == c.packed[i]);
        }
    });
}

TEMPLATE_LIST_TEST_CASE("decoded floats are the published ones", "[quant]", all_types) {
    std::size_t scores = 0;
    for_each_case(TestType::name(), [&](recorded const& c) {
        floats const out = decoded<TestType>(c.packed, c.head_dim);
        if (!c.has_decoded) {
            REQUIRE(std::any_of(out.begin(), out.end(), [](float x) { return !std::isfinite(x); }));
            return;
        }
        floats const wanted = row_of(c.file("decoded"), c.index, c.row);
        for (std::size_t i = 0; i < out.size(); ++i) {
            CAPTURE(i, out[i], wanted[i]);
            REQUIRE(bits(out[i]) == bits(wanted[i]));
        }
        for (std::size_t s = 0; s < c.scores.size(); ++s) {
            floats const q       = row_of(c.file("q"), 0, static_cast<bf::index_t>(s));
            double const allowed = 1e-6 * std::sqrt(dot(q, q) * dot(out, out));
            CAPTURE(s, c.scores[s], dot(q, out), allowed);
            REQUIRE(std::abs(c.scores[s] - dot(q, out)) <= allowed);
        }
        scores += c.scores.size();
    });
    REQUIRE((scores == 0) == scores_otherwise(TestType::name()));
}

TEMPLATE_LIST_TEST_CASE("rows of any length are written whole and not beyond", "[quant]", all_types) {
    TestType const codec;
    for (bf::index_t const n : {1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 65, 96, 127, 128, 129, 135, 200, 256, 257}) {
        CAPTURE(TestType::name(), n);
        floats const x      = normal(n, static_cast<unsigned>(n));
        auto const size     = static_cast<std::size_t>(codec.row_bytes(n));
        std::byte const end = std::byte{0xa5};

        bytes first(1 + size + 8, end), second(1 + size + 8, std::byte{0xff}); // rows begin at an odd address
        codec.encode(x.data(), n, first.data() + 1);
        codec.encode(x.data(), n, second.data() + 1);
        REQUIRE(std::equal(first.data() + 1, first.data() + 1 + size, second.data() + 1)); // whatever stood there
        REQUIRE(first[0] == end);
        REQUIRE(std::all_of(first.end() - 8, first.end(), [&](std::byte b) { return b == end; }));

        floats out(static_cast<std::size_t>(n) + 8, 123.0F);
        codec.decode(first.data() + 1, n, out.data());
        REQUIRE(std::all_of(out.end() - 8, out.end(), [](float v) { return v == 123.0F; }));
        REQUIRE(std::all_of(out.begin(), out.end(), [](float v) { return std::isfinite(v); }));

        if (n <= 128 || is_value_format(TestType::name())) continue; // blocks are coded alone
        bytes parts       = encoded<TestType>({x.begin(), x.begin() + 128});
        bytes const other = encoded<TestType>({x.begin() + 128, x.end()});
        parts.insert(parts.end(), other.begin(), other.end());
        REQUIRE(std::equal(parts.begin(), parts.end(), first.begin() + 1, first.end() - 8));
    }
}

TEMPLATE_LIST_TEST_CASE("bytes no encoder wrote are read without harm", "[quant]", all_types) {
    std::mt19937 random(3);
    for (bf::index_t const n : {1, 7, 80, 128, 200}) {
        for (int repeat = 0; repeat < 50; ++repeat) {
            bytes row(static_cast<std::size_t>(TestType{}.row_bytes(n)));
            for (std::byte& b : row) b = repeat == 0 ? std::byte{0xff} : static_cast<std::byte>(random() & 0xffU);
            floats const once = decoded<TestType>(row, n), again = decoded<TestType>(row, n);
            REQUIRE(std::equal(once.begin(), once.end(), again.begin(), [](float a, float b) {
                return bits(a) == bits(b) || (std::isnan(a) && std::isnan(b));
            }));
        }
    }
}

TEMPLATE_LIST_TEST_CASE("a value that is not finite shows, and only in its block", "[quant]", all_types) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    for (float const bad : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity})
        for (bf::index_t const n : {40, 128, 200}) {
            floats const clean  = normal(n, 5);
            floats const wanted = round_trip<TestType>(clean);
            for (bf::index_t const at : {bf::index_t{0}, n / 2, n - 1}) {
                CAPTURE(TestType::name(), bad, n, at);
                floats x                        = clean;
                x[static_cast<std::size_t>(at)] = bad;
                floats const out                = round_trip<TestType>(x);
                REQUIRE_FALSE(std::isfinite(out[static_cast<std::size_t>(at)]));
                for (bf::index_t i = 0; i < n; ++i)
                    if (i / 128 != at / 128)
                        REQUIRE(bits(out[static_cast<std::size_t>(i)]) == bits(wanted[static_cast<std::size_t>(i)]));
            }
        }
    floats const nothing(80, std::numeric_limits<float>::quiet_NaN());
    for (float const y : round_trip<TestType>(nothing)) REQUIRE_FALSE(std::isfinite(y));
}

TEMPLATE_LIST_TEST_CASE("values that a half cannot hold", "[quant]", all_types) {
    std::string_view const name = TestType::name();
    for (bf::index_t const n : {64, 80, 128}) {
        CAPTURE(name, n);
        floats x = normal(n, 9, 0.0F, 1e30F);
        floats y = round_trip<TestType>(x);
        if (is_value_format(name)) { // float32 scales: half the widest distance of levels
            float top = 0.0F;
            for (float const v : x) top = std::max(top, std::abs(v));
            float const allowed = top * (name == "v_q4" ? 0.501F / 7.0F : 0.529F / 1.5104F);
            for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(std::abs(y[i] - x[i]) <= allowed);
        } else
            REQUIRE(std::none_of(y.begin(), y.end(), [](float v) { return std::isfinite(v); }));

        x = normal(n, 9, 0.0F, 1e-30F);
        y = round_trip<TestType>(x);
        if (name == "v_q2") // 0 has no code
            REQUIRE(std::all_of(y.begin(), y.end(), [](float v) { return v < 0.0F && v > -2e-30F; }));
        else
            REQUIRE(std::all_of(y.begin(), y.end(), [](float v) { return v == 0.0F; }));

        y = round_trip<TestType>(floats(static_cast<std::size_t>(n)));
        REQUIRE(std::all_of(y.begin(), y.end(), [](float v) { return v == 0.0F; }));
    }
}

TEST_CASE("levels are mirrored, and a tie takes the lower code", "[quant]") {
    namespace detail = published::detail;
    for (int c = 0; c < 32; ++c) {
        REQUIRE(detail::level<5>(c) == -detail::level<5>(31 - c));
        REQUIRE(detail::nearest_code<5>(detail::level<5>(c)) == c);
    }
    REQUIRE(detail::nearest_code<2>(0.0F) == 1);
    REQUIRE(detail::nearest_code<4>(0.0F) == 7);
    REQUIRE(detail::nearest_code<3>(100.0F) == 7);
    REQUIRE(detail::nearest_code<3>(-100.0F) == 0);
}

TEST_CASE("codes stand lowest bit first, across bytes", "[quant]") {
    namespace detail    = published::detail;
    std::byte stream[5] = {};
    for (int i = 0; i < 8; ++i) detail::put_code<5>(stream, i, (7 * i + 1) % 32);
    std::uint64_t whole = 0;
    for (int i = 0; i < 5; ++i) whole |= std::to_integer<std::uint64_t>(stream[i]) << (8 * i);
    for (int i = 0; i < 8; ++i) {
        REQUIRE(static_cast<int>(whole >> (5 * i) & 31U) == (7 * i + 1) % 32);
        REQUIRE(detail::get_code<5>(stream, i) == (7 * i + 1) % 32);
    }
}

TEST_CASE("no product is contracted into the sum it meets", "[quant]") {
    namespace detail = published::detail;
    for (unsigned seed = 0; seed < 50; ++seed) {
        floats const x = normal(128, seed);
        float sum      = 0.0F;
        for (float const v : x) {
            float const volatile square = v * v;
            sum += square;
        }
        REQUIRE(bits(detail::norm_of(x.data(), 128)) == bits(std::sqrt(sum)));

        floats y = x, z = x; // two coordinates: a product each, then a sum and a difference
        detail::rotate_back(y.data(), 2);
        float const volatile a = z[0] * (1.0F / std::sqrt(2.0F)), b = z[1] * (1.0F / std::sqrt(2.0F));
        float const down = a + b, up = a - b;
        REQUIRE(bits(y[0]) == bits(-down));
        REQUIRE(bits(y[1]) == bits(up));
    }
}

TEST_CASE("what the published types cost is more than their names say", "[quant]") {
    auto const bits_per_value = [](auto codec, bf::index_t n) {
        return 8.0 * static_cast<double>(codec.row_bytes(n)) / static_cast<double>(n);
    };
    REQUIRE(bits_per_value(published::uniform_2b{}, 128) == 3.0);
    REQUIRE(bits_per_value(published::uniform_2b{}, 64) == 6.0);
    REQUIRE(bits_per_value(published::uniform_3b{}, 128) == 4.0);
    REQUIRE(bits_per_value(published::uniform_4b{}, 128) == 4.25);
    REQUIRE(bits_per_value(published::mixed_4b8{}, 128) == 5.0);
    REQUIRE(bits_per_value(published::turbo_kv_1b{}, 128) == 1.5);
    REQUIRE(bits_per_value(published::turbo_kv_2b{}, 128) == 2.5);
    REQUIRE(bits_per_value(published::turbo_kv_3b{}, 128) == 3.5);
    REQUIRE(bits_per_value(published::turbo_kv_4b{}, 128) == 4.5);
    REQUIRE(bits_per_value(published::turbo_kv_4b{}, 64) == 9.0);
    REQUIRE(bits_per_value(published::turbo_kv_4b{}, 80) == 7.2);
    REQUIRE(bits_per_value(published::turbo_kv_5b{}, 128) == 5.5);
    REQUIRE(bits_per_value(published::turbo_kv_5b_fast{}, 128) == 8.5);
    REQUIRE(bits_per_value(published::turbo_kv_4bo{}, 128) == 6.0);
    REQUIRE(bits_per_value(published::turbo_kv_3bo{}, 128) == 5.0);
    REQUIRE(bits_per_value(published::v_q4{}, 128) == 5.0);
    REQUIRE(bits_per_value(published::v_q2{}, 128) == 3.0);
}

TEST_CASE("errors on normal values", "[quant]") {
    auto const is = [](double error, double wanted) { return error > 0.97 * wanted && error < 1.03 * wanted; };
    REQUIRE(is(relative_error<published::uniform_2b>(128), 0.1029));
    REQUIRE(is(relative_error<published::uniform_3b>(128), 0.0259));
    REQUIRE(is(relative_error<published::uniform_4b>(128), 0.00916));
    REQUIRE(is(relative_error<published::mixed_4b8>(128), 0.00541));
    REQUIRE(is(relative_error<published::turbo_kv_3b>(128), 0.0433));
    REQUIRE(is(relative_error<published::turbo_kv_4b>(128), 0.00881));
    REQUIRE(is(relative_error<published::turbo_kv_5b>(128), 0.00218));
    REQUIRE(is(relative_error<published::turbo_kv_5b_fast>(128), 0.00218));
    REQUIRE(is(relative_error<published::turbo_kv_4bo>(128), 0.00479));
    REQUIRE(is(relative_error<published::turbo_kv_3bo>(128), 0.0201));
    REQUIRE(is(relative_error<published::turbo_kv_1b>(128), 0.360));
    REQUIRE(is(relative_error<published::turbo_kv_2b>(128), 0.360));
    REQUIRE(is(relative_error<published::v_q4>(128), 0.00941));
    REQUIRE(is(relative_error<published::v_q2>(128), 0.188));
}

TEST_CASE("the defects of the rotation", "[quant]") {
    namespace detail = published::detail;
    floats constant(128, 1.0F);
    detail::rotate(constant.data(), 128);
    REQUIRE(std::count_if(constant.begin(), constant.end(), [](float v) { return v != 0.0F; }) == 1);
    REQUIRE(relative_error<published::turbo_kv_3b>(128, 1.0F, 0.1F) > 1.2); // worse than zeros
    REQUIRE(relative_error<published::turbo_kv_4b>(128, 1.0F, 0.1F) > 0.15);

    floats const x = normal(80, 1);
    floats y       = x;
    detail::rotate(y.data(), 80);
    REQUIRE(std::equal(x.begin() + 64, x.end(), y.begin() + 64)); // not rotated
    detail::rotate_back(y.data(), 80);
    for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(std::abs(x[i] - y[i]) < 1e-5F);

    floats even = x, odd = x; // of all seeds two patterns come
    detail::flip_signs(even.data(), 64, 0xdeadbee0U);
    detail::flip_signs(odd.data(), 64, 0x00000001U);
    for (std::size_t i = 0; i < 64; ++i) REQUIRE(even[i] == -odd[i]);
}

TEST_CASE("the defects of blocks", "[quant]") {
    floats const x = normal(64, 2, 0.0F, 1e-4F); // the step of uniform_4b flushes to zero
    floats const y = round_trip<published::uniform_4b>(x);
    REQUIRE(std::all_of(y.begin(), y.end(), [&](float v) { return v == y[0]; }));

    floats const few{3.0F, 0.0F, 0.0F, 0.0F}; // slots left over overwrite coordinate 0
    REQUIRE(std::abs(round_trip<published::turbo_kv_4b>(few)[0] - 3.0F) < 0.01F);
    REQUIRE(std::abs(round_trip<published::turbo_kv_4bo>(few)[0] - 3.0F) > 0.5F);

    bytes const three = encoded<published::mixed_4b8>({3.0F, 5.0F, 4.0F}); // all apart: no range is left
    REQUIRE(std::all_of(three.begin(), three.begin() + 4, [](std::byte b) { return b == std::byte{0}; }));
    REQUIRE(bytes(three.begin() + 4, three.begin() + 8) ==
            bytes{std::byte{1}, std::byte{2}, std::byte{0}, std::byte{0}});

    bytes const signs = encoded<published::turbo_kv_1b>(normal(64, 3)); // two copies, the same bits
    REQUIRE(std::equal(signs.begin() + 8, signs.begin() + 16, signs.begin() + 16));

    floats const z = normal(128, 4); // the second bits are not read
    REQUIRE(round_trip<published::turbo_kv_2b>(z) == round_trip<published::turbo_kv_1b>(z));
    bytes row       = encoded<published::turbo_kv_2b>(z);
    floats const as = decoded<published::turbo_kv_2b>(row, 128);
    row[4] ^= std::byte{1}; // but its seed is
    REQUIRE(decoded<published::turbo_kv_2b>(row, 128) != as);

    bytes const codes = encoded<published::v_q4>(normal(128, 5)); // code 0 never comes
    for (std::size_t i = 0; i < 64; ++i) {
        REQUIRE((codes[i] & std::byte{0x0f}) != std::byte{0});
        REQUIRE((codes[i] & std::byte{0xf0}) != std::byte{0});
    }
}

} // namespace published_rows
