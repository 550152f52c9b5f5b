/** All runs: what is done, on which image, how thoroughly; and what came of it. */
import type { RecordedOperation } from '../../src/storage/recording';
import { type Coverage, type Cut, eachCut, type FileState } from '../helpers/power-cut';
import { Random } from '../helpers/random';
import { DiskJudge, type JudgeOptions } from './disk-judge';
import { recordDisk } from './disk-run';
import { type CrashFiles, type CrashImage, emptyFiles, IMAGES, load } from './images';
import { KINDS, type Kind } from './programs';
import { cutRepair } from './repair-judge';
import { CHANGES, type Change, recordChange, SnapshotJudge } from './snapshot-run';

/** One kind of run on one image. */
export interface CrashCase {
  kind: string;
  image: CrashImage;
  /** Records one run and judges its states. */
  run(options: JudgeOptions & Thoroughness): Ran;
}

export interface Thoroughness {
  /** As those of `eachCut`. */
  subsets: number;
  exhaustive: number;
}

interface Ran {
  coverage: Coverage;
  operations: number;
  reopened: number;
  problem?: string;
}

/** What a case came to. */
export interface Outcome {
  kind: string;
  image: string;
  seed: number;
  /** Runs of the kind, each with other offsets and lengths. */
  runs: number;
  /** Host operations in them. */
  operations: number;
  coverage: Coverage;
  reopened: number;
  judgedByQemu: number;
  problem?: string;
}

const suitsSnapshots = ({ image, data }: CrashImage) =>
  image.format === 'qcow2' && data === undefined && image.refcountBits !== 1;

export const CASES: readonly CrashCase[] = IMAGES.flatMap((image) => [
  ...KINDS.filter(({ suits }) => suits?.(image) !== false).map((kind) => diskCase(image, kind)),
  ...(suitsSnapshots(image) ? CHANGES.map((change) => snapshotCase(image, change)) : []),
  ...(image.image.format === 'qcow' ? [] : [repairCase(image)]),
  ...(suitsSnapshots(image) ? [snapshotRepairCase(image)] : []),
]);

/** @param seed decides everything */
export function runCase(
  { kind, image, run }: CrashCase,
  seed: number,
  runs: number,
  options: Omit<JudgeOptions, 'random'> & Thoroughness,
): Outcome {
  const random = new Random(seed);
  const before = options.qemu?.judged ?? 0;
  const coverage: Coverage = { prefixes: 0, exhaustive: 0, sampled: 0 };
  const outcome: Outcome = {
    kind,
    image: image.name,
    seed,
    runs: 0,
    operations: 0,
    coverage,
    reopened: 0,
    judgedByQemu: 0,
  };
  while (outcome.runs < runs && outcome.problem === undefined) {
    const { problem, operations, reopened, ...ran } = run({ ...options, random });
    outcome.runs++;
    outcome.operations += operations;
    outcome.reopened += reopened;
    add(coverage, ran.coverage);
    if (problem !== undefined) outcome.problem = problem;
  }
  outcome.judgedByQemu = (options.qemu?.judged ?? 0) - before;
  return outcome;
}

export function statesIn({ prefixes, exhaustive, sampled }: Coverage): number {
  return prefixes + exhaustive + sampled;
}

function add(sum: Coverage, more: Coverage): void {
  sum.prefixes += more.prefixes;
  sum.exhaustive += more.exhaustive;
  sum.sampled += more.sampled;
}

function diskCase(image: CrashImage, kind: Kind): CrashCase {
  return {
    kind: kind.name,
    image,
    run(options) {
      const run = recordDisk(image, kind.prepare, kind.program, options.random);
      const judge = new DiskJudge(run, options);
      const ran = judgeAll(run, options, (cut) => judge.visit(cut));
      return { ...ran, reopened: judge.reopened };
    },
  };
}

function snapshotCase(image: CrashImage, change: Change): CrashCase {
  return {
    kind: `${change} a snapshot`.replace('revert a', 'revert to a'),
    image,
    run(options) {
      const run = recordChange(image, change, options);
      const judge = new SnapshotJudge(run, options);
      const ran = judgeAll(run, options, (cut) => judge.visit(cut));
      if (ran.problem === undefined && (judge.done === 0 || judge.done === judge.states)) {
        ran.problem = `${judge.done} of ${judge.states} states are done`;
      }
      return { ...ran, reopened: judge.reopened };
    },
  };
}

/** Images that were cut while somebody wrote. */
function repairCase(image: CrashImage): CrashCase {
  return {
    kind: 'repair after writes',
    image,
    run(options) {
      const { prepare, program } = options.random.pick(KINDS.filter(({ suits }) => suits?.(image) !== false));
      const run = recordDisk(image, prepare, program, options.random);
      return repairSome(run, options);
    },
  };
}

function snapshotRepairCase(image: CrashImage): CrashCase {
  return {
    kind: 'repair after snapshots',
    image,
    run(options) {
      const run = recordChange(image, options.random.pick(CHANGES), options);
      return repairSome(run, options);
    },
  };
}

interface Recorded {
  starts: FileState[];
  log: RecordedOperation[];
}

function judgeAll(
  { starts, log }: Recorded,
  options: JudgeOptions & Thoroughness,
  judge: (cut: Cut) => string | undefined,
): Omit<Ran, 'reopened'> {
  let problem: string | undefined;
  const coverage = eachCut(starts, log, options, (cut) => {
    const found = judge(cut);
    if (found === undefined) return true;
    problem = `cut after ${cut.given} of ${log.length} operations${cut.torn ? ', torn' : ''}: ${found}`;
    return false;
  });
  return { coverage, operations: log.length, ...(problem === undefined ? {} : { problem }) };
}

/** Repairs some of the states that cuts of a run leave, each of the repairs with cuts of its own. */
function repairSome(run: Recorded & { files: CrashFiles }, options: JudgeOptions & Thoroughness): Ran {
  const { random, reopen, subsets, exhaustive } = options;
  const files: CrashFiles = { ...emptyFiles(run.files), base: run.files.base };
  const ran: Ran = {
    coverage: { prefixes: 0, exhaustive: 0, sampled: 0 },
    operations: run.log.length,
    reopened: 0,
  };
  eachCut(run.starts, run.log, { random, subsets: 1 }, (cut) => {
    if (!random.chance(reopen)) return true;
    load(files, cut.states);
    ran.reopened++;
    const { coverage, problem } = cutRepair(files, { random, subsets, exhaustive });
    add(ran.coverage, coverage);
    if (problem !== undefined) ran.problem = `cut after ${cut.given} of ${run.log.length} operations: ${problem}`;
    return problem === undefined;
  });
  return ran;
}
