/**
 * npm run test:crash: the long matrix of power cuts, and its report.
 *
 *   --runs N       runs of each case, each with other offsets and lengths (8)
 *   --seed N       decides everything (a new one, which is printed)
 *   --only TEXT    cases whose kind or image has it in its name
 *   --jobs N       processes (as many as there are processors)
 */
import { fork } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { parseArgs } from 'node:util';
import { CASES, type Outcome, runCase, statesIn } from './matrix';
import { Qemu } from './qemu';

/** What one process is asked to run. */
interface Order {
  index: number;
  seed: number;
  runs: number;
}

const THOROUGHNESS = { subsets: 6, exhaustive: 7, reopen: 0.08, ask: 0.01 };

/** Runs what it is asked for, one case after the other. */
function serve(): void {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-crash-'));
  process.on('exit', () => fs.rmSync(directory, { recursive: true, force: true }));
  process.on('disconnect', () => process.exit());
  const qemu = Qemu.isThere ? new Qemu(directory) : undefined;
  process.on('message', ({ index, seed, runs }: Order) => {
    process.send?.(outcomeOf(index, seed, runs, qemu));
  });
}

function outcomeOf(index: number, seed: number, runs: number, qemu: Qemu | undefined): Outcome {
  const found = CASES[index];
  try {
    return runCase(found, seed, runs, { ...THOROUGHNESS, ...(qemu === undefined ? {} : { qemu }) });
  } catch (error) {
    const problem = error instanceof Error ? (error.stack ?? error.message) : String(error);
    const coverage = { prefixes: 0, exhaustive: 0, sampled: 0 };
    const nothing = { runs: 0, operations: 0, coverage, reopened: 0, judgedByQemu: 0 };
    return { kind: found.kind, image: found.image.name, seed, ...nothing, problem };
  }
}

/** Gives the orders to processes of their own as these become free. */
function runAll(orders: Order[], jobs: number): Promise<Outcome[]> {
  const outcomes: Outcome[] = [];
  const lane = () =>
    new Promise<void>((resolve, reject) => {
      const child = fork(__filename, ['--serve'], { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
      let asked = false;
      const next = () => {
        const order = orders.shift();
        asked = order !== undefined;
        if (order !== undefined) child.send(order);
        else child.disconnect();
      };
      child.on('message', (outcome: Outcome) => {
        outcomes.push(outcome);
        print(outcome);
        next();
      });
      child.on('error', reject);
      child.on('exit', (code) => {
        if (asked) reject(new Error(`a process ended with exit code ${code} in the middle of a case`));
        else resolve();
      });
      next();
    });
  return Promise.all(Array.from({ length: jobs }, lane)).then(() => outcomes);
}

const COLUMNS = ['states', 'all', 'random', 'reopened', 'QEMU'].map((title) => title.padStart(9)).join('');

function print({ kind, image, seed, coverage, reopened, judgedByQemu, problem }: Outcome): void {
  const numbers = [
    statesIn(coverage),
    coverage.prefixes + coverage.exhaustive,
    coverage.sampled,
    reopened,
    judgedByQemu,
  ];
  const columns = numbers.map((number) => String(number).padStart(9)).join('');
  console.log(`${kind.padEnd(24)}${image.padEnd(40)}${columns}  ${seed}${problem === undefined ? '' : '  FAILED'}`);
  if (problem !== undefined) console.log(`    ${problem}`);
}

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      runs: { type: 'string', default: '8' },
      seed: { type: 'string', default: String(Math.floor(Math.random() * 1e9)) },
      only: { type: 'string', default: '' },
      jobs: { type: 'string', default: String(os.availableParallelism()) },
    },
  });
  const seed = Number(values.seed);
  const orders = CASES.map((_, index) => ({ index, seed: seed + index, runs: Number(values.runs) })).filter(
    ({ index }) => `${CASES[index].kind} ${CASES[index].image.name}`.includes(values.only),
  );
  console.log(`Power cuts: ${orders.length} cases, ${values.runs} runs each, --seed ${seed}`);
  console.log(
    '"all": every prefix, and every combination of pending sectors where there are few; "random": samples of the rest',
  );
  console.log(`${'run'.padEnd(24)}${'image'.padEnd(40)}${COLUMNS}  seed`);
  const outcomes = await runAll(orders, Number(values.jobs));
  const states = outcomes.reduce((sum, { coverage }) => sum + statesIn(coverage), 0);
  const all = outcomes.reduce((sum, { coverage }) => sum + coverage.prefixes + coverage.exhaustive, 0);
  const judged = outcomes.reduce((sum, { judgedByQemu }) => sum + judgedByQemu, 0);
  const failed = outcomes.filter(({ problem }) => problem !== undefined);
  if (judged === 0) console.log('QEMU judged nothing: these cases do not ask it, or qemu-img is not installed');
  console.log(
    `${outcomes.length} cases, ${states} states (${all} of all, ${states - all} random), ${judged} judged by QEMU`,
  );
  for (const { kind, image, seed: own, problem } of failed)
    console.log(`FAILED ${kind}, ${image}, seed ${own}: ${problem}`);
  console.log(`${outcomes.length - failed.length} passed, ${failed.length} failed`);
  return failed.length === 0 && outcomes.length > 0 ? 0 : 1;
}

if (process.argv[2] === '--serve') serve();
else {
  main().then(
    (code) => {
      process.exitCode = code;
    },
    (error: unknown) => {
      console.error(error);
      process.exitCode = 1;
    },
  );
}
