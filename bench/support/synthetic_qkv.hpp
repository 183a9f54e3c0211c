// SPDX-License-Identifier: MIT
#pragma once

// Queries, keys and values with the structure that attention of trained models has, so that a selection of keys can be
// right or wrong: independent normal numbers would make every key equally unimportant.
//
//   sinks      the first keys all lie in one direction that every query leans to
//   local      keys and queries follow a slow walk, so that neighbours look alike
//   distant    each stretch of 48 tokens has one of 24 topics; a query asks for its own topic, wherever it was before
//   key means  a constant added to all keys of a head (it moves no softmax, but it is what a codec has to deal with)
//
// Values carry the topic of their token and noise. Strengths are in nats of logit. Same numbers on every platform.

#include <butterfly/core/heads.hpp>
#include <butterfly/testing/problem.hpp>

#include <cmath>
#include <vector>

namespace bench {

struct synthetic_options {
    butterfly::index_t heads    = 8;
    butterfly::index_t kv_heads = 2;
    butterfly::index_t tokens   = 2048;
    butterfly::index_t head_dim = 64;
    std::uint64_t seed          = 1;
    double sink                 = 8.0; // logit of the first tokens above the others: a quarter of the mass at 4096
    double local                = 4.0; // logit of the token itself above a far one
    double distant              = 3.0; // logit of a token of the same topic
    double noise                = 0.7; // standard deviation of the rest
    double key_mean             = 4.0; // norm of the constant part of keys
};

struct synthetic_qkv {
    butterfly::heads_buffer<float> q, k, v;
};

namespace synthetic {

using butterfly::index_t;
using direction = std::vector<double>;

inline direction unit(butterfly::testing::random& draws, index_t size) {
    direction out(static_cast<std::size_t>(size));
    double norm = 0;
    for (double& x : out) {
        x = draws.normal();
        norm += x * x;
    }
    for (double& x : out) x /= std::sqrt(norm);
    return out;
}

/// Adds factor * d to a row.
inline void add(std::span<float> row, direction const& d, double factor) {
    for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<float>(row[i] + factor * d[i]);
}

/// Unit vectors that turn slowly: neighbours have cosine 0.9.
inline std::vector<direction> slow_walk(butterfly::testing::random& draws, index_t tokens, index_t size) {
    std::vector<direction> out{unit(draws, size)};
    while (static_cast<index_t>(out.size()) < tokens) {
        direction next       = out.back();
        direction const turn = unit(draws, size);
        double norm          = 0;
        for (std::size_t i = 0; i < next.size(); ++i) {
            next[i] = 0.9 * next[i] + 0.436 * turn[i];
            norm += next[i] * next[i];
        }
        for (double& x : next) x /= std::sqrt(norm);
        out.push_back(std::move(next));
    }
    return out;
}

} // namespace synthetic

/// Heads of one group share keys and lean to sinks, neighbours and topics in different proportions.
[[nodiscard]] inline synthetic_qkv make_synthetic_qkv(synthetic_options const& o) {
    using butterfly::index_t;
    synthetic_qkv out{butterfly::heads_buffer<float>({o.heads, o.tokens, o.head_dim}),
                      butterfly::heads_buffer<float>({o.kv_heads, o.tokens, o.head_dim}),
                      butterfly::heads_buffer<float>({o.kv_heads, o.tokens, o.head_dim})};
    constexpr index_t topics = 24, stretch = 48, sinks = 4;
    double const part   = std::sqrt(std::sqrt(static_cast<double>(o.head_dim))); // of the scale 1 / sqrt(head_dim)
    index_t const group = o.heads / o.kv_heads;

    for (index_t kv = 0; kv < o.kv_heads; ++kv) {
        butterfly::testing::random draws(o.seed, static_cast<std::uint64_t>(kv));
        auto const sink = synthetic::unit(draws, o.head_dim), mean = synthetic::unit(draws, o.head_dim);
        auto const walk = synthetic::slow_walk(draws, o.tokens, o.head_dim);
        std::vector<synthetic::direction> topic, content;
        for (index_t i = 0; i < topics; ++i) topic.push_back(synthetic::unit(draws, o.head_dim));
        for (index_t i = 0; i < topics; ++i) content.push_back(synthetic::unit(draws, o.head_dim));

        index_t now = 0;
        for (index_t t = 0; t < o.tokens; ++t) {
            if (t % stretch == 0) now = draws.below(topics);
            auto const about = static_cast<std::size_t>(now), at = static_cast<std::size_t>(t);
            auto const noise = [&](std::span<float> row, double size) {
                for (float& x : row) x = static_cast<float>(x + size * draws.normal());
            };
            auto const key = out.k.view().row(kv, t), value = out.v.view().row(kv, t);
            noise(key, std::sqrt(o.noise));
            synthetic::add(key, mean, o.key_mean);
            synthetic::add(key, walk[at], part * std::sqrt(o.local));
            synthetic::add(key, topic[about], part * std::sqrt(o.distant));
            if (t < sinks) synthetic::add(key, sink, part * std::sqrt(o.sink));
            noise(value, 0.5);
            synthetic::add(value, content[about], std::sqrt(static_cast<double>(o.head_dim)));
            for (index_t h = 0; h < group; ++h) {
                auto const query  = out.q.view().row(kv * group + h, t);
                double const lean = group > 1 ? static_cast<double>(h) / static_cast<double>(group - 1) : 0.5;
                noise(query, std::sqrt(o.noise));
                synthetic::add(query, sink, part * std::sqrt(o.sink));
                synthetic::add(query, walk[at], 2 * (1 - lean) * part * std::sqrt(o.local));
                synthetic::add(query, topic[about], 2 * lean * part * std::sqrt(o.distant));
            }
        }
    }
    return out;
}

} // namespace bench
