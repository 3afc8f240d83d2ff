// Global memory: what a launch may touch, and in which order its threads do.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <string>
#include <unordered_map>
#include <vector>

#include "shared.h"

namespace ptx {

struct Range {
  std::uint64_t begin, end;
};

// Something that a thread did, and between which barriers of its block.
struct Event {
  unsigned block = 0, thread = 0, epoch = 0;
};

// What a thread knows to have happened: of each block all before an epoch, and what one thread did
// in it.
class Clock {
 public:
  void learn(const Event& last) {
    if (last.block >= last_.size()) last_.resize(last.block + 1);
    if (last.epoch > last_[last.block].epoch) last_[last.block] = last;
  }
  void learn(const Clock& other) {
    for (const Event& last : other.last_) learn(last);
  }
  bool knows(const Event& event) const {
    if (event.block >= last_.size()) return false;
    const Event& last = last_[event.block];
    return event.epoch < last.epoch || (event.epoch == last.epoch && event.thread == last.thread);
  }

 private:
  std::vector<Event> last_;
};

// What orders a thread's work: barriers of its block, and counts that other blocks add to, too.
struct Actor {
  Event now;
  const Clock* block;  // what all of its block know
  Clock own;           // what it has learned since the last barrier
  Clock heard;         // what it will know after a fence

  bool knows(const Event& event) const {
    if (event.block == now.block) return event.thread == now.thread || event.epoch < now.epoch;
    return block->knows(event) || own.knows(event);
  }
};

class Global {
 public:
  // ranges: sorted, disjoint.
  Global(const Range* ranges, std::size_t count) : ranges_(ranges, ranges + count) {}

  void check(std::uint64_t address, unsigned bytes) const {
    if (address % bytes != 0) fail(std::to_string(bytes) + " bytes at an address not aligned so");
    const auto after = std::upper_bound(
        ranges_.begin(), ranges_.end(), address,
        [](std::uint64_t value, const Range& range) { return value < range.begin; });
    if (after == ranges_.begin() || address + bytes > std::prev(after)->end)
      fail(std::to_string(bytes) + " bytes that belong to no tensor");
  }

  void read(std::uint64_t address, unsigned bytes, const Actor& actor) {
    for_words(address, bytes, [&](Word& word) {
      expect(word.written, actor, "read");
      for (Event& before : word.read)
        if (before.block == actor.now.block) {
          const bool alone = before.thread == actor.now.thread || before.epoch < actor.now.epoch;
          before = {actor.now.block, alone ? actor.now.thread : kSeveral, actor.now.epoch};
          return;
        }
      word.read.push_back(actor.now);
    });
  }

  void write(std::uint64_t address, unsigned bytes, const Actor& actor) {
    for_words(address, bytes, [&](Word& word) {
      expect(word.written, actor, "written");
      for (const Event& before : word.read) expect(before, actor, "written");
      word = {actor.now, false, {}};
    });
  }

  // An atomic addition that releases tells later ones what its thread knows. Its thread will know,
  // at once if it acquires, what earlier ones told.
  void add(std::uint64_t address, Actor& actor, bool acquires, bool releases) {
    Word& word = words_[address / kBytes];
    if (!word.added) expect(word.written, actor, "added to");
    word = {actor.now, true, {}};
    Clock& told = told_[address];
    (acquires ? actor.own : actor.heard).learn(told);
    if (!releases) return;
    told.learn(*actor.block);
    told.learn(actor.own);
    told.learn(actor.now);
  }

 private:
  static constexpr unsigned kBytes = 2;  // the narrowest access
  struct Word {
    Event written;
    bool added = false;
    std::vector<Event> read;  // since then, one for each block
  };

  template <class Visit>
  void for_words(std::uint64_t address, unsigned bytes, Visit visit) {
    for (std::uint64_t w = address / kBytes; w < (address + bytes) / kBytes; ++w) visit(words_[w]);
  }
  static void expect(const Event& before, const Actor& actor, const char* what) {
    if (before.epoch != 0 && !actor.knows(before))
      fail(std::string("global memory is ") + what + ", in no order with what block " +
           std::to_string(before.block) + " did there");
  }

  std::vector<Range> ranges_;
  std::unordered_map<std::uint64_t, Word> words_;
  std::unordered_map<std::uint64_t, Clock> told_;
};

}  // namespace ptx
