// Runs the threads of a grid in an order drawn from the seed, drawn anew whenever one gives way.
#include <algorithm>
#include <numeric>
#include <utility>

#include "grid.h"

namespace simt {

Grid* grid = nullptr;
Generator generator;

namespace {

Options current_options;

// Instrumented code (-fsanitize-coverage=trace-pc) counts this down at every basic block; at 0 the
// thread gives way there. It is 0 outside kernels.
unsigned blocks_until_preempted = 0;

void run_thread(void* argument) {
  Thread& thread = *static_cast<Thread*>(argument);
  try {
    (*grid->kernel)();
    hold_preemption();
    leave_block(thread);
  } catch (const Error& error) {
    grid->error = error.what();
  }
  thread.fiber->suspend(true);
}

void resume(Thread& thread) {
  threadIdx = thread.index;
  blockIdx = thread.block->index;
  grid->current = &thread;
  blocks_until_preempted = 1 + draw(grid->patience);
  thread.fiber->resume();
  blocks_until_preempted = 0;
  grid->current = nullptr;
  if (!grid->error.empty()) throw Error(grid->error);
}

}  // namespace

Thread::Thread(Block* block, uint3 index, unsigned number)
    : block(block), index(index), number(number) {
  fiber = std::make_unique<Fiber>(run_thread, this);
}

Block::Block(uint3 index, dim3 size) : index(index) {
  threads.reserve(std::size_t{size.x} * size.y * size.z);  // they are pointed to
  for (unsigned z = 0; z < size.z; ++z) {
    for (unsigned y = 0; y < size.y; ++y) {
      for (unsigned x = 0; x < size.x; ++x) {
        const auto number = static_cast<unsigned>(threads.size());
        runnable.push_back(&threads.emplace_back(this, uint3{x, y, z}, number));
      }
    }
  }
  warps.resize((threads.size() + kWarp - 1) / kWarp);
  for (std::size_t w = 0; w < warps.size(); ++w) {
    warps[w].lanes = &threads[w * kWarp];
    const std::size_t lanes = std::min<std::size_t>(kWarp, threads.size() - w * kWarp);
    warps[w].gone = lanes < kWarp ? ~0u << lanes : 0;
    for (unsigned lane = 0; lane < kWarp; ++lane) warps[w].clock[lane][lane] = 1;
  }
}

// The current thread returns to the list when it gives way.
void Block::wake(Thread& thread) {
  thread.state = Thread::State::runnable;
  if (&thread != grid->current) runnable.push_back(&thread);
}

// Stays with a block for a while: some launches run blocks side by side, others nearly one by one.
Block* Grid::pick_block() {
  std::size_t candidates = 0;
  for (const auto& block : resident) {
    if (block->runnable.empty()) continue;
    if (block.get() == last && stay > 0) {
      --stay;
      return last;
    }
    ++candidates;
  }
  if (candidates == 0) throw Error(describe_deadlock(*this));
  std::size_t chosen = draw(candidates);
  for (const auto& block : resident) {
    if (!block->runnable.empty() && chosen-- == 0) last = block.get();
  }
  stay = draw(loyalty);
  return last;
}

void Grid::run(dim3 size) {
  std::vector<std::uint64_t> waiting(std::size_t{size.x} * size.y * size.z);
  std::iota(waiting.begin(), waiting.end(), 0);
  std::shuffle(waiting.begin(), waiting.end(), generator);
  loyalty = 1u << draw(12);
  patience = 16u << draw(12);
  const std::size_t room = 1 + draw(static_cast<std::size_t>(current_options.resident_blocks));
  std::int64_t switches = 0;
  while (!waiting.empty() || !resident.empty()) {
    while (!waiting.empty() && resident.size() < room) {
      const std::uint64_t number = waiting.back();
      waiting.pop_back();
      const uint3 index{static_cast<unsigned>(number % size.x),
                        static_cast<unsigned>(number / size.x % size.y),
                        static_cast<unsigned>(number / size.x / size.y)};
      resident.push_back(std::make_unique<Block>(index, block_size));
    }
    Block* block = pick_block();
    std::swap(block->runnable[draw(block->runnable.size())], block->runnable.back());
    Thread* thread = block->runnable.back();
    block->runnable.pop_back();
    resume(*thread);
    if (thread->state == Thread::State::runnable) block->runnable.push_back(thread);
    if (block->num_finished == block->threads.size()) {
      last = nullptr;  // another block may get its address
      std::erase_if(resident, [&](const auto& other) { return other.get() == block; });
    }
    if (++switches > current_options.max_switches) {
      throw Error("the launch does not end: " + std::to_string(switches) + " switches done");
    }
  }
}

void wait(Thread& thread) {
  hold_preemption();
  thread.fiber->suspend(false);
}

unsigned hold_preemption() { return std::exchange(blocks_until_preempted, 0u); }

void release_preemption(unsigned held) { blocks_until_preempted = held; }

void yield() {
  if (grid != nullptr && grid->current != nullptr) wait(*grid->current);
}

unsigned lane() { return grid->current->lane(); }

void configure(const Options& options) {
  current_options = options;
  generator.state = options.seed;
}

const Options& options() { return current_options; }

void launch(dim3 size, dim3 block_size, const std::function<void()>& kernel) {
  if (grid != nullptr) throw Error("a kernel is launched from inside a kernel");
  Grid running{.block_size = block_size, .kernel = &kernel};
  struct Reset {
    ~Reset() { grid = nullptr; }
  } reset;
  grid = &running;
  gridDim = size;
  blockDim = block_size;
  try {
    running.run(size);
  } catch (const Error& error) {
    throw Error(std::string(error.what()) + " (seed " + std::to_string(current_options.seed) + ")");
  }
}

extern "C" void __sanitizer_cov_trace_pc() {
  if (blocks_until_preempted != 0 && --blocks_until_preempted == 0) yield();
}

}  // namespace simt
