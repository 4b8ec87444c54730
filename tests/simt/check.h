// What the tests of this folder need of a test framework: checks that say what failed, and a count
// at the end.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace check {

inline int passed = 0, failed = 0;

inline void report(bool holds, const std::string& what, const char* file, int line) {
  ++(holds ? passed : failed);
  if (!holds) std::fprintf(stderr, "%s:%d: failed: %s\n", file, line, what.c_str());
}

// Runs f, which must throw an E whose text contains `text`.
template <typename E, typename F>
void throws(F&& f, const std::string& text, const char* file, int line) {
  try {
    f();
  } catch (const E& error) {
    const bool found = std::string(error.what()).find(text) != std::string::npos;
    report(found, "\"" + text + "\" in \"" + error.what() + "\"", file, line);
    return;
  }
  report(false, "expected an error with \"" + text + "\"", file, line);
}

// Runs f in a child process, which must fail with `text` on its standard error.
template <typename F>
void dies(F&& f, const std::string& text, const char* file, int line) {
  int ends[2];
  if (pipe(ends) != 0) return report(false, "pipe", file, line);
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    f();
    _exit(0);
  }
  close(ends[1]);
  std::string output;
  char buffer[4096];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof(buffer))) > 0;) output.append(buffer, n);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  const bool found = status != 0 && output.find(text) != std::string::npos;
  report(found, "a process that dies of \"" + text + "\", not:\n" + output, file, line);
}

// The end of main().
inline int summary() {
  std::printf("%d checks passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace check

#define CHECK(condition) check::report((condition), #condition, __FILE__, __LINE__)
#define CHECK_THROWS(error, text, ...) \
  check::throws<error>([&] { __VA_ARGS__; }, text, __FILE__, __LINE__)
#define CHECK_DIES(text, ...) check::dies([&] { __VA_ARGS__; }, text, __FILE__, __LINE__)
