// SPDX-License-Identifier: MIT
#include "worker.hpp"

#include "timing.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <random>
#include <stdexcept>
#include <string_view>

namespace peers {
namespace {

using json = nlohmann::json;

index_t bytes_of(bf::element_type type) {
    return type == bf::element_type::f32 ? 4 : 2;
}

/// A type of work by its name.
struct work_type {
    char const* name;
    bf::element_type inputs;
    int bits;
};
constexpr work_type work_types[] = {{"f32", bf::element_type::f32, 0},
                                    {"f16", bf::element_type::f16, 0},
                                    {"bf16", bf::element_type::bf16, 0},
                                    {"8bit", bf::element_type::f32, 8},
                                    {"4bit", bf::element_type::f32, 4}};

work_type parse_type(std::string const& text) {
    for (work_type const& t : work_types)
        if (text == t.name) return t;
    throw std::runtime_error(fmt::format("no type '{}'", text));
}

task parse_kind(std::string const& text) {
    if (text == "prefill") return task::prefill;
    if (text == "sparse") return task::sparse;
    if (text == "decode") return task::decode;
    throw std::runtime_error(fmt::format("no kind '{}'", text));
}

work parse_work(json const& line) {
    auto const size = [&](char const* key) {
        auto const n = line.at(key).get<index_t>();
        if (n < 1) throw std::runtime_error(fmt::format("{} is {}", key, n));
        return n;
    };
    work_type const type = parse_type(line.at("type"));
    work const w{.kind     = parse_kind(line.at("kind")),
                 .type     = type.inputs,
                 .bits     = type.bits,
                 .heads    = size("heads"),
                 .kv_heads = size("kv_heads"),
                 .queries  = size("queries"),
                 .keys     = size("keys"),
                 .head_dim = size("head_dim"),
                 .block    = size("block"),
                 .threads  = static_cast<int>(size("threads"))};
    if (w.heads % w.kv_heads != 0) throw std::runtime_error("heads is no multiple of kv_heads");
    if (w.bits != 0 && w.kind != task::decode) throw std::runtime_error("packed keys and values are for decode");
    return w;
}

std::vector<std::byte> read_file(std::string const& path, index_t bytes) {
    std::vector<std::byte> data(static_cast<std::size_t>(bytes));
    std::ifstream in(path, std::ios::binary);
    in.read(reinterpret_cast<char*>(data.data()), bytes);
    if (in.gcount() != bytes || in.peek() != std::ifstream::traits_type::eof())
        throw std::runtime_error(fmt::format("{} has not {} bytes", path, bytes));
    return data;
}

/// q, k and v of a file, or of a self-test.
tensors split(work const& w, std::span<std::byte const> all) {
    auto const size     = [&](index_t elements) { return static_cast<std::size_t>(elements * bytes_of(w.type)); };
    std::size_t const q = size(w.q_size()), kv = size(w.kv_size());
    return {all.subspan(0, q), all.subspan(q, kv), all.subspan(q + kv, kv)};
}

/// Of one call, the mean of some.
double milliseconds(peer& subject, int calls) {
    subject.wake();
    bench::stopwatch const watch;
    for (int i = 0; i < calls; ++i) subject.run();
    double const seconds = watch.seconds();
    subject.rest();
    return seconds * 1e3 / calls;
}

json prepare(peer& subject, json const& line) {
    work const w = parse_work(line);
    if (std::string const why = subject.refusal(w); !why.empty()) return {{"refused", why}};
    auto const data         = read_file(line.at("inputs"), (w.q_size() + 2 * w.kv_size()) * bytes_of(w.type));
    std::string const types = subject.prepare(w, split(w, data));
    return {{"types", types}, {"ms", milliseconds(subject, 1)}};
}

json rows(peer const& subject, index_t head_dim, json const& wanted) {
    std::vector<float> values, row(static_cast<std::size_t>(head_dim));
    for (json const& at : wanted) {
        subject.read_row(at.at(0).get<index_t>(), at.at(1).get<index_t>(), row);
        values.insert(values.end(), row.begin(), row.end());
    }
    for (float& x : values) // JSON has no NaN
        if (!std::isfinite(x)) x = 1e30F;
    return {{"values", values}};
}

json answer(peer& subject, std::string const& text, index_t& head_dim) try {
    json const line       = json::parse(text);
    std::string const cmd = line.at("cmd");
    if (cmd == "prepare") {
        head_dim = line.at("head_dim");
        return prepare(subject, line);
    }
    if (cmd == "go") return {{"ms", milliseconds(subject, line.at("calls"))}};
    if (cmd == "rows") return rows(subject, head_dim, line.at("rows"));
    return {{"error", "no command " + cmd}};
} catch (std::exception const& e) {
    return {{"error", e.what()}};
}

/// N(0, 1) rounded to the work's type.
std::vector<std::byte> draw_inputs(work const& w) {
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    std::vector<std::byte> all;
    for (index_t i = 0; i < w.q_size() + 2 * w.kv_size(); ++i) {
        float const x  = normal(random);
        auto const add = [&](auto element) {
            auto const* const bytes = reinterpret_cast<std::byte const*>(&element);
            all.insert(all.end(), bytes, bytes + sizeof element);
        };
        if (w.type == bf::element_type::f32) add(x);
        if (w.type == bf::element_type::f16) add(bf::float16(x));
        if (w.type == bf::element_type::bf16) add(bf::bfloat16(x));
    }
    return all;
}

/// One row of the output by its definition.
std::vector<double> exact_row(work const& w,
                              std::span<float const> q,
                              std::span<float const> k,
                              std::span<float const> v,
                              index_t head,
                              index_t i) {
    index_t const kv = head / (w.heads / w.kv_heads);
    auto const at    = [&](std::span<float const> x, index_t row, index_t d) {
        return static_cast<double>(x[static_cast<std::size_t>(row * w.head_dim + d)]);
    };
    std::vector<double> scores, sum(static_cast<std::size_t>(w.head_dim));
    double top = -1e300, weights = 0;
    for (index_t j = 0; j < w.keys; ++j) {
        scores.push_back(0);
        if (!w.sees(i, j)) continue;
        double dot = 0;
        for (index_t d = 0; d < w.head_dim; ++d) dot += at(q, head * w.queries + i, d) * at(k, kv * w.keys + j, d);
        scores.back() = dot / std::sqrt(static_cast<double>(w.head_dim));
        top           = std::max(top, scores.back());
    }
    for (index_t j = 0; j < w.keys; ++j) {
        if (!w.sees(i, j)) continue;
        double const weight = std::exp(scores[static_cast<std::size_t>(j)] - top);
        weights += weight;
        for (index_t d = 0; d < w.head_dim; ++d) sum[static_cast<std::size_t>(d)] += weight * at(v, kv * w.keys + j, d);
    }
    for (double& x : sum) x /= weights;
    return sum;
}

/// Over every ninth row, the last among them. Packed keys and values are those that the peer has, so that what packing
/// loses hides nothing: a key left out of 150 misses by 0.1.
double relative_error(peer const& subject, work const& w, tensors const& in) {
    auto const q = to_floats(in.q, w.type);
    auto k = to_floats(in.k, w.type), v = to_floats(in.v, w.type);
    if (w.bits != 0) subject.read_packed(k, v);
    std::vector<float> got(static_cast<std::size_t>(w.head_dim));
    double wrong = 0, total = 0;
    for (index_t head = 0; head < w.heads; ++head)
        for (index_t i = w.queries - 1; i >= 0; i -= 9) {
            auto const want = exact_row(w, q, k, v, head, i);
            subject.read_row(head, i, got);
            for (std::size_t d = 0; d < want.size(); ++d) {
                wrong += (got[d] - want[d]) * (got[d] - want[d]);
                total += want[d] * want[d];
            }
        }
    return std::sqrt(wrong / total);
}

/// Prints one line per work the peer takes; false where one is wrong, or where it takes none.
bool self_test(std::string const& name, peer& subject) {
    bool good = true, any = false;
    for (auto const kind : {task::prefill, task::sparse, task::decode})
        for (work_type const& type : work_types)
            for (int const threads : {1, 2}) {
                if (type.bits != 0 && kind != task::decode) continue;
                work const w{.kind     = kind,
                             .type     = type.inputs,
                             .bits     = type.bits,
                             .heads    = 4,
                             .kv_heads = 2,
                             .queries  = kind == task::decode ? 1 : 150,
                             .keys     = 150,
                             .head_dim = 32,
                             .block    = 16,
                             .threads  = threads};
                if (!subject.refusal(w).empty()) continue;
                auto const data  = draw_inputs(w);
                tensors const in = split(w, data);
                auto const types = subject.prepare(w, in);
                subject.wake();
                subject.run();
                subject.rest();
                double const error            = relative_error(subject, w, in);
                bool const exact              = type.inputs == bf::element_type::f32 && type.bits == 0;
                bool const right              = error <= (exact ? 1e-5 : 2e-2);
                constexpr char const* kinds[] = {"prefill", "sparse", "decode"};
                fmt::print("{} {} {} {} threads: relative error {:.1e}{} ({})\n", name, kinds[static_cast<int>(kind)],
                           type.name, threads, error, right ? "" : ", WRONG", types);
                good = good && right;
                any  = true;
            }
    return good && any;
}

} // namespace

bool work::sees(index_t i, index_t j) const {
    if (kind == task::decode) return true;
    if (j > i) return false;
    if (kind == task::prefill) return true;
    index_t const back = i / block - j / block;
    return back == 0 || back == 1 || back == 8 || j / block == 0;
}

std::vector<float> to_floats(std::span<std::byte const> elements, bf::element_type type) {
    std::vector<float> out(elements.size() / static_cast<std::size_t>(bytes_of(type)));
    auto const convert = [&](auto element) {
        for (std::size_t i = 0; i < out.size(); ++i) {
            std::memcpy(&element, elements.data() + i * sizeof element, sizeof element);
            out[i] = static_cast<float>(element);
        }
    };
    if (type == bf::element_type::f32) convert(float{});
    if (type == bf::element_type::f16) convert(bf::float16{});
    if (type == bf::element_type::bf16) convert(bf::bfloat16{});
    return out;
}

bf::executor team([[maybe_unused]] int threads) {
#if defined(_OPENMP)
    if (threads > 1) return bf::openmp{.threads = threads};
#endif
    return bf::serial{};
}

int serve(int argc, char const* const* argv, std::string const& name, peer& subject) {
    if (argc == 2 && std::string_view(argv[1]) == "--self-test") return self_test(name, subject) ? 0 : 1;
    if (argc > 1) {
        fmt::print(stderr, "peer_{}: driven by bench/peers/compare.py; by hand there is --self-test\n", name);
        return 2;
    }
    std::cout << json{{"peer", name}, {"version", subject.version()}}.dump() << std::endl;
    index_t head_dim = 0;
    for (std::string line; std::getline(std::cin, line);)
        std::cout << answer(subject, line, head_dim).dump() << std::endl;
    return 0;
}

} // namespace peers
