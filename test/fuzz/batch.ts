/** Watches a worker from outside: time without progress, memory at its highest. A batch that fails is run again case by case. */
import { type ChildProcess, spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import * as readline from 'node:readline';
import type { Finding } from './exercise';
import type { Message } from './worker';

/** A case that takes more processor time than this is a hang. */
const HANG_CPU_MS = 10_000;
/** The same for one that sleeps, in polls: a machine that was asleep itself has made none. Generous, it may be busy. */
const HANG_POLLS = 600;
/** Of one case alone. */
const MEMORY_MAX_KIB = 512 * 1024;
/**
 * Garbage of earlier cases, which must not be taken for the need of this one. Collecting it by force after each case throws
 * the optimized code away too: three times as long.
 */
const GARBAGE_MAX_KIB = 256 * 1024;
const POLL_MS = 100;
/** Of /proc/PID/stat; 100 on every Linux. */
const TICKS_PER_SECOND = 100;

export interface CaseFinding extends Finding {
  /** KIND:INDEX */
  name: string;
  story: string[];
}

export interface BatchReport {
  cases: number;
  /** Images that opened. */
  opened: number;
  findings: CaseFinding[];
  slowestMs: number;
  slowest: string;
  peakKib: number;
}

export interface Batch {
  seed: number;
  /** KIND:INDEX each */
  cases: string[];
  /** Compare with qemu-img check. */
  qemu?: boolean;
  /** Leave the files of the last case there. */
  keep?: string;
}

/** Runs the cases; one that hangs or ends its process is a finding, and the others run on. */
export async function runBatch(batch: Batch): Promise<BatchReport> {
  const report: BatchReport = { cases: 0, opened: 0, findings: [], slowestMs: 0, slowest: '', peakKib: 0 };
  let rest = batch.cases;
  while (rest.length > 0) {
    const run = await new WatchedWorker({ ...batch, cases: rest }, report).done;
    if (run.problem === undefined) break;
    if (run.name === '') throw new Error(`the worker did not begin: ${run.detail}`);
    if (run.problem === 'memory' && rest.length > 1) {
      // Which of them was it? Each alone.
      for (const name of rest) await runAlone({ ...batch, cases: [name] }, report);
      break;
    }
    report.findings.push({ name: run.name, step: run.problem, problem: run.detail, story: [] });
    rest = rest.slice(rest.indexOf(run.name) + 1);
  }
  return report;
}

async function runAlone(batch: Batch, report: BatchReport): Promise<void> {
  const own = await runBatch(batch);
  report.findings.push(...own.findings);
  report.peakKib = Math.max(report.peakKib, own.peakKib);
}

interface Outcome {
  problem?: 'hang' | 'memory' | 'died';
  detail: string;
  /** Of the case that ran. */
  name: string;
}

class WatchedWorker {
  readonly done: Promise<Outcome>;
  private readonly child: ChildProcess;
  private readonly directory: string;
  private name = '';
  private ended = false;
  private outcome: Outcome = { detail: '', name: '' };
  private begun = { cpuMs: 0, polls: 0 };
  private polls = 0;
  private readonly memoryMaxKib: number;

  constructor(
    batch: Batch,
    private readonly report: BatchReport,
  ) {
    this.memoryMaxKib = MEMORY_MAX_KIB + (batch.cases.length > 1 ? GARBAGE_MAX_KIB : 0);
    this.directory = batch.keep ?? fs.mkdtempSync(path.join(workPlace(), 'imagefs-fuzz-'));
    if (batch.keep !== undefined) fs.mkdirSync(this.directory);
    const words = [String(batch.seed), this.directory, ...batch.cases];
    const child = spawn(process.execPath, [path.join(__dirname, 'worker.js'), ...words], {
      stdio: ['pipe', 'ignore', 'pipe', 'pipe'],
      env: { ...process.env, IMAGEFS_FUZZ_QEMU: batch.qemu ? '1' : '0' },
    });
    this.child = child;
    let stderr = '';
    child.stderr?.on('data', (chunk: Buffer) => {
      stderr = (stderr + chunk.toString()).slice(-2000);
    });
    const lines = readline.createInterface({ input: child.stdio[3] as NodeJS.ReadableStream });
    lines.on('line', (line) => this.hear(JSON.parse(line) as Message));
    const timer = setInterval(() => this.look(), POLL_MS);
    this.done = new Promise((resolve) => {
      child.on('close', (code, signal) => {
        clearInterval(timer);
        if (batch.keep === undefined) fs.rmSync(this.directory, { recursive: true, force: true });
        if (!this.ended && this.outcome.problem === undefined) {
          this.outcome = { problem: 'died', name: this.name, detail: `exit ${code ?? signal}: ${stderr}` };
        }
        resolve(this.outcome);
      });
    });
  }

  private hear(message: Message): void {
    const { report } = this;
    if (message.kind === 'case') {
      this.name = message.name;
      this.begun = { cpuMs: this.cpuMs(), polls: this.polls };
    } else if (message.kind === 'finding') {
      const { name, story, finding } = message;
      report.findings.push({ name, story, ...finding });
    } else if (message.kind === 'outcome') {
      report.cases++;
      if (message.opened === 'done') report.opened++;
      if (message.ms > report.slowestMs) Object.assign(report, { slowestMs: message.ms, slowest: message.name });
    } else if (message.kind === 'end') {
      this.look();
      this.ended = true;
      this.child.stdin?.end();
    }
  }

  /** Measures the worker, and stops it when it is over a limit. */
  private look(): void {
    if (this.ended) return;
    const peak = this.peakKib();
    this.report.peakKib = Math.max(this.report.peakKib, peak);
    if (peak > this.memoryMaxKib) this.stop('memory', `${Math.round(peak / 1024)} MiB`);
    const cpu = this.cpuMs() - this.begun.cpuMs;
    const polls = ++this.polls - this.begun.polls;
    if (cpu > HANG_CPU_MS || polls > HANG_POLLS)
      this.stop('hang', `${cpu} ms of processor time, ${polls * POLL_MS} ms`);
  }

  private stop(problem: 'hang' | 'memory', detail: string): void {
    if (this.outcome.problem !== undefined) return;
    this.outcome = { problem, name: this.name, detail };
    this.child.kill('SIGKILL');
  }

  private peakKib(): number {
    return Number(/VmHWM:\s+(\d+)/.exec(this.proc('status'))?.[1] ?? 0);
  }

  private cpuMs(): number {
    const fields = this.proc('stat').split(') ')[1]?.split(' ') ?? [];
    return ((Number(fields[11] ?? 0) + Number(fields[12] ?? 0)) * 1000) / TICKS_PER_SECOND;
  }

  private proc(name: string): string {
    try {
      return fs.readFileSync(`/proc/${this.child.pid}/${name}`, 'utf8');
    } catch {
      return '';
    }
  }
}

/** Syncs cost nothing in memory. */
function workPlace(): string {
  try {
    fs.accessSync('/dev/shm', fs.constants.W_OK);
    return '/dev/shm';
  } catch {
    return os.tmpdir();
  }
}
