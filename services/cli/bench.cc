// `expertmesh bench`: throughput and latency of a server under load.

#include <algorithm>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "services/cli/bench_client.h"
#include "services/cli/bench_flags.h"
#include "services/cli/bench_report.h"
#include "services/cli/bench_summary.h"
#include "services/cli/command.h"
#include "services/cli/interrupt.h"
#include "services/cli/terminal.h"
#include "services/core/status_macros.h"

namespace expertmesh {
namespace {

absl::StatusOr<v1::Model> GetModel(Client& client) {
  grpc::ClientContext context;
  client.Prepare(context);
  v1::Model model;
  RETURN_IF_ERROR(client.Result(client.model().GetModel(&context, {}, &model)));
  return model;
}

// Where results go: text to standard output, unless JSON does; JSON to the
// file, if one is named.
class Output {
 public:
  static absl::StatusOr<Output> Open(const BenchFlags& flags) {
    Output output;
    output.json_ = flags.json->count() > 0;
    if (flags.json_file.empty()) return output;
    output.file_name_ = flags.json_file;
    output.file_.open(flags.json_file);
    RETURN_IF_ERROR(output.FileStatus());
    return output;
  }

  absl::Status Text(const std::string& text) {
    if (json_ && file_name_.empty()) return absl::OkStatus();
    WriteOut(text);
    return OutStatus();
  }

  absl::Status Json(const std::string& line) {
    if (!json_) return absl::OkStatus();
    if (file_name_.empty()) {
      WriteOut(line + "\n");
      return OutStatus();
    }
    file_ << line << std::endl;
    return FileStatus();
  }

 private:
  absl::Status FileStatus() const {
    if (file_) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("cannot write ", file_name_));
  }

  bool json_ = false;
  std::string file_name_;
  std::ofstream file_;
};

// Runs levels one after the other.
class Bench {
 public:
  Bench(Client& client, const BenchSettings& settings, Interrupts& interrupts)
      : client_(client),
        settings_(settings),
        maker_(settings.requests, settings.model),
        interrupts_(interrupts) {}

  absl::Status Check() const { return maker_.Check(); }

  // Warms up, then measures.
  LevelReport Run(const LoadLevel& level) {
    LoadLevel warmup;
    warmup.concurrency = level.concurrency.value_or(
        std::min<uint64_t>(settings_.warmup_requests, 8));
    warmup.max_requests = settings_.warmup_requests;
    if (settings_.warmup_requests > 0) Load(warmup, "warm-up");
    LevelReport report = {level, absl::Now(), {}};
    if (!interrupts_.interrupted()) {
      report.summary = Summarize(Load(level, level.Name()));
    }
    return report;
  }

 private:
  LoadResult Load(const LoadLevel& level, const std::string& name) {
    const uint32_t round = round_++;
    const BenchClient::Callbacks callbacks = {
        .make_request =
            [&](uint64_t index) { return maker_.Make(round, index); },
        .go_on =
            [&](const BenchClient::Progress& progress) {
              ShowProgress(absl::StrFormat(
                  "%s: %d requests done, %d running, %d failed, %.0f s", name,
                  progress.done, progress.running, progress.failed,
                  absl::ToDoubleSeconds(progress.now)));
              return !interrupts_.interrupted();
            }};
    LoadResult result = BenchClient(client_).Run(
        level, DerivedSeed(settings_.requests.seed, "arrivals", 0, 0),
        callbacks);
    ShowProgress("");
    return result;
  }

  Client& client_;
  const BenchSettings& settings_;
  const RequestMaker maker_;
  Interrupts& interrupts_;
  uint32_t round_ = 0;
};

absl::Status Verdict(const BenchFlags& flags, const Interrupts& interrupts,
                     const std::vector<LevelReport>& reports) {
  if (interrupts.interrupted()) return absl::CancelledError("interrupted");
  uint64_t failed = 0, requests = 0;
  for (const LevelReport& report : reports) {
    failed += report.summary.failed;
    requests += report.summary.requests();
  }
  if (failed == 0 || flags.allow_failures) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat(failed, " of ", requests, " requests failed"));
}

absl::StatusOr<BenchSettings> Settings(const BenchFlags& flags) {
  BenchSettings settings;
  settings.server = flags.server.address;
  settings.timeout_seconds = flags.server.timeout_seconds;
  settings.texts_file = flags.prompts_file;
  settings.warmup_requests = flags.warmup;
  ASSIGN_OR_RETURN(settings.requests, BenchRequestOptions(flags));
  return settings;
}

// One level after the other, until an interrupt; each is written when it has
// ended.
absl::StatusOr<std::vector<LevelReport>> RunLevels(
    const std::vector<LoadLevel>& levels, const BenchSettings& settings,
    Bench& bench, const Interrupts& interrupts, Output& output) {
  std::vector<LevelReport> reports;
  for (const LoadLevel& level : levels) {
    const LevelReport report = bench.Run(level);
    const bool interrupted = interrupts.interrupted();
    // In the warm-up.
    if (interrupted && report.summary.requests() == 0) break;
    RETURN_IF_ERROR(output.Text("\n" + LevelText(report)));
    RETURN_IF_ERROR(output.Json(LevelJson(settings, report)));
    if (const auto warning = ClientWarning(report.summary)) {
      WriteErr(absl::StrCat("expertmesh: ", *warning, "\n"));
    }
    reports.push_back(report);
    if (interrupted) break;
  }
  return reports;
}

absl::Status Run(const BenchFlags& flags) {
  ASSIGN_OR_RETURN(const std::vector<LoadLevel> levels, BenchLevels(flags));
  ASSIGN_OR_RETURN(BenchSettings settings, Settings(flags));
  Interrupts interrupts;
  ASSIGN_OR_RETURN(Client client, Client::Create(flags.server));
  ASSIGN_OR_RETURN(settings.model, GetModel(client));
  Bench bench(client, settings, interrupts);
  RETURN_IF_ERROR(bench.Check());
  ASSIGN_OR_RETURN(Output output, Output::Open(flags));

  interrupts.Watch([] {});  // asked for several times a second
  RETURN_IF_ERROR(output.Text(SettingsText(settings)));
  ASSIGN_OR_RETURN(const std::vector<LevelReport> reports,
                   RunLevels(levels, settings, bench, interrupts, output));
  if (reports.size() > 1) {
    RETURN_IF_ERROR(output.Text("\n" + ComparisonText(reports)));
  }
  return Verdict(flags, interrupts, reports);
}

}  // namespace

Command BenchCommand(CLI::App& root) {
  CLI::App* app = root.add_subcommand(
      "bench", "Measure throughput and latency of a server under load");
  auto flags = std::make_shared<BenchFlags>();
  AddBenchFlags(*app, *flags);
  return {app, [flags] { return Run(*flags); }};
}

}  // namespace expertmesh
