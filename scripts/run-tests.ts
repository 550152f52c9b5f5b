/**
 * Runs compiled test files, two avas at a time, and says at the end what failed and why.
 *
 * One ava, one process group and one temporary directory a file: a file that crashes or hangs fails alone, and what it leaves
 * behind (mounts, loop devices, daemons) is found by that directory, removed and counted as a failure of that file. Unit tests
 * are small, and starting ava for each would take longer than most of them: several share one, and what is left behind or hangs is told of all of these.
 * The last line is always `N passed, N failed`. Exit code 0 only when something passed and nothing failed.
 *
 *   node dist/scripts/run-tests.js [--failed "step that failed before"]... [dist/test/unit/x.test.js]...
 */
import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { removeDirectory, removeLeftovers } from './leftovers';
import { type Failure, readTap } from './tap';

const ROOT = path.resolve(__dirname, '..', '..');
const AVA = path.join(ROOT, 'node_modules', 'ava', 'entrypoints', 'cli.mjs');
const CONCURRENCY = Number(process.env.IMAGEFS_TEST_CONCURRENCY ?? 2);
/** Wall time of one ava. Generous: the slowest file takes a fraction of it on a quiet machine. */
const FILE_LIMIT_MS = Number(process.env.IMAGEFS_TEST_FILE_SECONDS ?? 150) * 1000;
const TEST_FILE = /\.test\.js$/;

/** Unit tests that share an ava. */
const TOGETHER = 8;
const UNIT = path.join(ROOT, 'dist', 'test', 'unit') + path.sep;

interface FileReport {
  /** Or the first and the number of those that shared an ava. */
  file: string;
  seconds: number;
  passed: number;
  skipped: string[];
  failures: Failure[];
  output: string;
}

function listTests(directory: string): string[] {
  return fs
    .readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .filter((name) => TEST_FILE.test(name))
    .map((name) => path.join(directory, name))
    .sort();
}

/** What each ava runs. */
function inGroups(files: string[]): string[][] {
  const small = files.filter((file) => file.startsWith(UNIT));
  const groups = files.filter((file) => !file.startsWith(UNIT)).map((file) => [file]);
  for (let at = 0; at < small.length; at += TOGETHER) groups.push(small.slice(at, at + TOGETHER));
  return groups;
}

const running = new Set<number>();

function killGroup(pid: number): void {
  try {
    process.kill(-pid, 'SIGKILL');
  } catch {
    // the whole group has ended
  }
}

interface Outcome {
  exitCode: number | null;
  timedOut: boolean;
  stdout: string;
  stderr: string;
}

function runAva(files: string[], directory: string): Promise<Outcome> {
  return new Promise((resolve) => {
    const names = files.map((file) => path.relative(ROOT, file));
    const child = spawn(process.execPath, [AVA, '--tap', '--timeout=1h', '--concurrency=1', ...names], {
      cwd: ROOT,
      detached: true, // a group of its own: its workers end with it
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, TMPDIR: directory, FORCE_COLOR: '0' },
    });
    const chunks = { stdout: [] as Buffer[], stderr: [] as Buffer[] };
    child.stdout.on('data', (chunk: Buffer) => chunks.stdout.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => chunks.stderr.push(chunk));
    const pid = child.pid;
    if (pid !== undefined) running.add(pid);
    let timedOut = false;
    const limit = setTimeout(() => {
      timedOut = true;
      if (pid !== undefined) killGroup(pid);
    }, FILE_LIMIT_MS);
    let settled = false;
    const settle = (exitCode: number | null, extra = '') => {
      if (settled) return;
      settled = true;
      clearTimeout(limit);
      if (pid !== undefined) {
        running.delete(pid);
        killGroup(pid);
      }
      child.stdout.destroy();
      child.stderr.destroy();
      const text = (part: Buffer[]) => Buffer.concat(part).toString('utf8');
      resolve({ exitCode, timedOut, stdout: text(chunks.stdout), stderr: text(chunks.stderr) + extra });
    };
    child.on('error', (error) => settle(1, String(error)));
    child.on('close', (code) => settle(code));
    // A daemon that was left behind holds the pipes open: the exit of ava counts, with a moment for the last output.
    child.on('exit', (code) => setTimeout(() => settle(code), 1000));
  });
}

async function runFiles(files: string[]): Promise<FileReport> {
  const begun = Date.now();
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-test-'));
  fs.chmodSync(directory, 0o1777); // as /tmp: tests become other users
  const outcome = await runAva(files, directory);
  const left = await removeLeftovers(directory);
  removeDirectory(directory);
  const result = readTap(outcome.stdout, outcome.exitCode);
  if (outcome.timedOut) {
    const failures = result.failures.filter((failure) => !failure.name.startsWith('ava '));
    const stopped = { name: `stopped: not finished after ${FILE_LIMIT_MS / 1000} s`, output: [] };
    result.failures = [stopped, ...failures];
  }
  for (const line of left) result.failures.push({ name: `left behind: ${line}`, output: [] });
  return {
    file: `${path.relative(ROOT, files[0])}${files.length > 1 ? ` and ${files.length - 1} more` : ''}`,
    seconds: (Date.now() - begun) / 1000,
    passed: result.passed,
    skipped: result.skipped,
    failures: result.failures,
    output: `${outcome.stdout}${outcome.stderr}`,
  };
}

function printFile(report: FileReport): void {
  const verdict = report.failures.length === 0 ? 'ok' : 'FAILED';
  console.log(`\n${verdict} ${report.file} (${report.passed} passed, ${report.seconds.toFixed(1)} s)`);
  for (const line of report.output.trimEnd().split('\n')) {
    if (/^(TAP version|---|1\.\.\d|# (tests|pass|fail|skip|todo)\b|$)/.test(line)) continue;
    console.log(`  ${line}`);
  }
}

function printFailures(reports: FileReport[], steps: string[]): void {
  if (steps.length === 0 && reports.every((report) => report.failures.length === 0)) return;
  console.log('\nWhat failed:');
  for (const step of steps) console.log(`\n✖ ${step}`);
  for (const report of reports) {
    for (const failure of report.failures) {
      console.log(`\n✖ ${report.file}: ${failure.name}`);
      for (const line of failure.output) console.log(`  ${line}`);
    }
    // A file that died says why outside its tests: the end of everything it printed.
    const died = report.failures.some((failure) => /^(ava |stopped|no test|No tests)|exited/.test(failure.name));
    if (died) {
      console.log(`  the last lines of ${report.file}:`);
      for (const line of report.output.trimEnd().split('\n').slice(-25)) console.log(`    ${line}`);
    }
  }
}

async function main(args: string[]): Promise<number> {
  const steps: string[] = [];
  const files: string[] = [];
  for (let i = 0; i < args.length; i++) {
    if (args[i] === '--failed') steps.push(args[++i] ?? '');
    else files.push(path.resolve(args[i]));
  }
  const queue = files.length > 0 ? files.map((file) => [file]) : inGroups(listTests(path.join(ROOT, 'dist', 'test')));
  const reports: FileReport[] = [];
  // From both ends: tests of the engine, which come first, keep a processor busy while those of mounts wait.
  const lane = async (_: unknown, index: number) => {
    const next = () => (index % 2 === 0 ? queue.shift() : queue.pop());
    for (let group = next(); group !== undefined; group = next()) {
      const report = await runFiles(group);
      printFile(report);
      reports.push(report);
    }
  };
  await Promise.all(Array.from({ length: Math.max(1, CONCURRENCY) }, lane));

  printFailures(reports, steps);
  const slow = [...reports].sort((a, b) => b.seconds - a.seconds).slice(0, 5);
  console.log(`\nslowest: ${slow.map((r) => `${path.basename(r.file)} ${r.seconds.toFixed(1)} s`).join(', ')}`);
  const skipped = reports.flatMap((report) => report.skipped.map((title) => `${report.file}: ${title}`));
  for (const title of skipped) console.log(`skipped: ${title}`);
  const passed = reports.reduce((sum, report) => sum + report.passed, 0);
  const failed = reports.reduce((sum, report) => sum + report.failures.length, steps.length);
  const missing = passed + failed === 0 ? 1 : 0;
  if (missing > 0) console.log('✖ no test was found');
  console.log(`${passed} passed, ${failed + missing} failed`);
  return failed + missing === 0 ? 0 : 1;
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    for (const pid of running) killGroup(pid);
    // The lanes then collect what is left behind, file by file; a second signal ends at once.
    process.once(signal, () => process.exit(130));
  });
}

main(process.argv.slice(2)).then(
  (code) => {
    process.exitCode = code;
  },
  (error: unknown) => {
    console.error(error);
    console.log('0 passed, 1 failed');
    process.exitCode = 1;
  },
);
