/**
 * Power cuts. A program runs over a storage that keeps a log; from the log come the states that a host may leave: every
 * prefix, and between two syncs any of the unsynced operations lost or torn at sectors. In each of them the image opens,
 * no table is wrong, what was flushed is there, and each byte is what it was at the last flush or what was written since.
 */
import test, { type ExecutionContext } from 'ava';
import type { ImageNode } from '../../src/block/image-node';
import { maintain } from '../../src/block/open';
import { readQedHeader } from '../../src/formats/qed/header';
import { MemoryStorage } from '../../src/storage/memory';
import { type RecordedOperation, RecordingStorage } from '../../src/storage/recording';
import { KIB, MIB } from '../../src/units';
import { checkStorage, createInMemory, type ImageSpec, openChainOf } from '../helpers/images';
import { type Cut, eachCut, FileState } from '../helpers/power-cut';
import { LONG, patternBytes, Random, seedOf, squeezableBytes } from '../helpers/random';

const CAPACITY = 10 * MIB;

interface CutConfig {
  name: string;
  /** What the top image is made with, but for its size. */
  image: Omit<ImageSpec, 'size'>;
  cluster: number;
  size: number;
  /** Bytes of a raw backing file. */
  backing?: number;
}

const qed = (cluster: number, tableSize: number, size: number, backing?: number) => {
  const image = { format: 'qed' as const, clusterSize: cluster, tableSize };
  return { image, cluster, size, backing };
};
const qcow2 = (cluster: number, image: Partial<ImageSpec>, size: number, backing?: number) => {
  return { image: { ...image, format: 'qcow2' as const, clusterSize: cluster }, cluster, size, backing };
};

const qcow = (cluster: number, size: number, backing?: number) => {
  return { image: { format: 'qcow' as const, clusterSize: cluster }, cluster, size, backing };
};

const CONFIGS: CutConfig[] = [
  { name: 'qed alone', ...qed(4 * KIB, 1, 4 * MIB + 3 * 512) },
  { name: 'qed over shorter raw', ...qed(4 * KIB, 2, 4 * MIB + 3 * 512, 3 * MIB + 512) },
  { name: 'qed over longer raw', ...qed(4 * KIB, 1, 3 * MIB + 512, 5 * MIB) },
  { name: 'qed 64 KiB over raw', ...qed(64 * KIB, 1, 2 * MIB + 512, 2 * MIB) },
  { name: 'qcow2 alone', ...qcow2(4 * KIB, {}, 4 * MIB + 3 * 512) },
  { name: 'qcow2 with many refcount blocks', ...qcow2(512, { refcountBits: 64 }, 2 * MIB + 512) },
  { name: 'qcow2 version 2 over longer raw', ...qcow2(KIB, { version: 2 }, 3 * MIB + 512, 5 * MIB) },
  { name: 'qcow2 with subclusters over raw', ...qcow2(16 * KIB, { extendedL2: true }, 3 * MIB + 512, 3 * MIB) },
  // Just below 4 MiB: growing needs a larger L1 table.
  { name: 'qcow alone', ...qcow(4 * KIB, 4 * MIB - 5 * 512) },
  { name: 'qcow over longer raw', ...qcow(512, 4 * MIB - 5 * 512, 5 * MIB) },
];

/** What the program asked of the disk; `from` and `to`: length of the log before and after. */
interface Step {
  from: number;
  to: number;
  offset: number;
  length: number;
  /** What the range held afterwards; undefined: zeroes. */
  bytes?: Uint8Array;
}

/** A moment at which a flush returned. */
interface Promised {
  /** Length of the log when it returned. */
  to: number;
  /** Steps before it. */
  steps: number;
  disk: Uint8Array;
}

interface Run {
  start: FileState;
  log: RecordedOperation[];
  steps: Step[];
  promised: Promised[];
  base: MemoryStorage | undefined;
}

function grow(disk: Uint8Array, size: number): Uint8Array {
  const larger = new Uint8Array(size);
  larger.set(disk);
  return larger;
}

/** Runs a random program and closes the image. */
function record(config: CutConfig, random: Random, operations: number): Run {
  const { cluster, size } = config;
  const backing = config.backing === undefined ? undefined : { name: 'base', format: 'raw' };
  const storage = createInMemory({ ...config.image, size, backing }, CAPACITY);
  const base =
    config.backing === undefined ? undefined : createInMemory({ format: 'raw', size: config.backing }, config.backing);
  base?.write(0, patternBytes(0, config.backing ?? 0, 77), 0, config.backing ?? 0, 'data-write');
  const start = new FileState(CAPACITY);
  start.length = storage.size();
  storage.read(0, start.bytes, 0, start.length);

  const log: RecordedOperation[] = [];
  const chain = openChainOf(base === undefined ? [storage] : [storage, base], {
    wrap: (below) => new RecordingStorage(below, log),
  });
  const { node } = chain;
  let disk: Uint8Array = new Uint8Array(size);
  node.read(0, disk, 0, size);
  const run: Run = { start, log, steps: [], promised: [{ to: 0, steps: 0, disk: disk.slice() }], base };
  const promise = () => run.promised.push({ to: log.length, steps: run.steps.length, disk: disk.slice() });
  const step = (offset: number, length: number, bytes: Uint8Array | undefined, body: () => void) => {
    const from = log.length;
    body();
    run.steps.push({ from, to: log.length, offset, length, bytes });
    if (bytes === undefined) disk.fill(0, offset, offset + length);
    else disk.set(bytes, offset);
  };
  // A small part of the disk, so that clusters are dropped and used again and again, and ends of tables now and then.
  const spots = [0, 5 * cluster, 2 * MIB - cluster, 2 * MIB, size - (size % cluster) - cluster, size - 512];
  for (let index = 0; index < operations; index++) {
    const length = random.chance(0.5) ? random.between(1, 3000) : random.between(1, 5 * cluster);
    let offset = Math.min(disk.length - 1, random.pick(spots) + random.below(6 * cluster));
    if (random.chance(0.3)) offset -= offset % cluster;
    const count = Math.min(length, disk.length - offset);
    const what = random.below(100);
    if (what < 12 && node.format.startsWith('qcow')) {
      const from = offset - (offset % cluster);
      const whole = Math.min(disk.length, Math.ceil((offset + count) / cluster) * cluster) - from;
      const bytes = squeezableBytes(from, whole, index + 1);
      step(from, whole, bytes, () => node.write(from, bytes, 0, whole, { compressed: true }));
    } else if (what < 45) {
      const bytes = patternBytes(offset, count, index + 1);
      step(offset, count, bytes, () => node.write(offset, bytes, 0, count));
    } else if (what < 70) step(offset, count, undefined, () => node.writeZeroes(offset, count));
    else if (what < 74) step(offset, 0, undefined, () => node.allocate(offset, count));
    else if (what < 90) {
      node.flush();
      promise();
    } else if (what < 95) maintain(node, Date.now() + 3_600_000);
    else if (random.chance(0.4)) {
      const before = disk.length;
      const next = before + 512 * random.between(1, 40);
      disk = grow(disk, next);
      step(before, next - before, undefined, () => node.resize(next));
    }
  }
  chain.finish();
  promise();
  return run;
}

class Judge {
  states = 0;
  reopened = 0;
  repairs = 0;
  private readonly storage = MemoryStorage.create(CAPACITY);

  constructor(
    private readonly t: ExecutionContext,
    private readonly config: CutConfig,
    private readonly run: Run,
    private readonly random: Random,
  ) {}

  /** @returns false after the first wrong state */
  visit(cut: Cut): boolean {
    this.states++;
    const where = `${this.config.name}, cut after ${cut.given} of ${this.run.log.length} operations${cut.torn ? ', torn' : ''}`;
    const { storage, run } = this;
    storage.write(0, cut.state.bytes, 0, cut.state.length, 'create');
    storage.truncate(cut.state.length, 'create');
    const result = checkStorage(storage);
    if (result.corruptions + result.checkErrors > 0) return this.wrong(where, result.messages.join('; '));
    const hasDirtyBit = this.config.image.format === 'qed' && run.base === undefined;
    if (hasDirtyBit && this.mustBeDirty(cut.given) && !readQedHeader(storage).dirty) {
      return this.wrong(where, 'tables changed, and need-check is not set');
    }
    const layers = run.base === undefined ? [storage] : [storage, run.base];
    const problem = this.compare(openChainOf(layers, { readOnly: true }).node, cut);
    if (problem !== undefined) return this.wrong(where, problem);
    if (!this.random.chance(0.08)) return true;
    // Open it as its owner would: dirty images are checked, and it goes on from there.
    this.reopened++;
    const repair: RecordedOperation[] = [];
    const again = openChainOf(layers, { wrap: (below) => new RecordingStorage(below, repair) });
    const cutAgain = this.cutDuring(repair, cut);
    if (cutAgain !== undefined) return this.wrong(`${where}, cut again while it was opened`, cutAgain);
    const after = this.compare(again.node, cut) ?? this.goOn(again.node);
    again.finish();
    const closed = checkStorage(storage);
    if (closed.corruptions + closed.checkErrors > 0)
      return this.wrong(`${where}, reopened`, closed.messages.join('; '));
    return after === undefined || this.wrong(`${where}, reopened`, after);
  }

  /** Tables were changed, and nobody has touched the header since: the bit was durable before. */
  private mustBeDirty(given: number): boolean {
    const { log } = this.run;
    for (let at = given - 1; at >= 0; at--) {
      const { event } = log[at];
      if (event === 'header-update') return false;
      if (event === 'l1-update' || event === 'l2-update') return true;
    }
    return false;
  }

  /** The power fails again while the image is opened for writing, and perhaps repaired. */
  private cutDuring(repair: RecordedOperation[], first: Cut): string | undefined {
    if (repair.length === 0) return undefined;
    this.repairs++;
    let problem: string | undefined;
    const storage = MemoryStorage.create(CAPACITY);
    eachCut(first.state, repair, { random: this.random, subsets: 2, every: 1 }, ({ state }) => {
      storage.write(0, state.bytes, 0, state.length, 'create');
      storage.truncate(state.length, 'create');
      const result = checkStorage(storage);
      if (result.corruptions + result.checkErrors > 0) problem ??= result.messages.join('; ');
      const layers = this.run.base === undefined ? [storage] : [storage, this.run.base];
      problem ??= this.compare(openChainOf(layers, { readOnly: true }).node, first);
    });
    return problem;
  }

  private wrong(where: string, problem: string): false {
    this.t.fail(`${where}: ${problem}`);
    return false;
  }

  /** Writes into a new cluster, and beside it nothing changes. */
  private goOn(node: ImageNode): string | undefined {
    const size = node.size();
    const before = new Uint8Array(size);
    node.read(0, before, 0, size);
    const offset = this.random.below(size - 600);
    const bytes = patternBytes(offset, 600, 4242);
    node.write(offset, bytes, 0, 600);
    node.flush();
    before.set(bytes, offset);
    const after = new Uint8Array(size);
    node.read(0, after, 0, size);
    return Buffer.compare(before, after) === 0 ? undefined : 'a write after reopening changed other bytes';
  }

  private compare(node: ImageNode, cut: Cut): string | undefined {
    const { promised, steps } = this.run;
    let last = promised[0];
    for (const candidate of promised) if (candidate.to <= cut.given) last = candidate;
    const later = steps.slice(last.steps).filter((step) => step.from <= cut.given);
    const size = node.size();
    const sizes = [last.disk.length, ...later.map((step) => step.offset + step.length)];
    if (!sizes.includes(size) || size < last.disk.length) return `size ${size} was never asked for`;
    const disk = new Uint8Array(size);
    node.read(0, disk, 0, size);
    const expected = last.disk.length < size ? grow(last.disk, size) : last.disk;
    for (let page = 0; page < size; page += 4096) {
      const end = Math.min(size, page + 4096);
      if (Buffer.compare(disk.subarray(page, end), expected.subarray(page, end)) === 0) continue;
      for (let at = page; at < end; at++) {
        if (disk[at] === expected[at]) continue;
        const found = later.some(
          ({ offset, length, bytes }) =>
            at >= offset && at < offset + length && disk[at] === (bytes === undefined ? 0 : bytes[at - offset]),
        );
        if (!found) return `byte ${at} reads ${disk[at]}, was ${expected[at]} at the last flush, and nobody wrote that`;
      }
    }
    return undefined;
  }
}

for (const [index, config] of CONFIGS.entries()) {
  test(`${config.name}: every power cut leaves a sound image with all that was flushed`, (t) => {
    const random = new Random(seedOf(t, 500 + index));
    let states = 0;
    let reopened = 0;
    let repairs = 0;
    for (let program = 0; program < (LONG ? 10 : 2); program++) {
      const run = record(config, random, LONG ? 150 : 70);
      const judge = new Judge(t, config, run, random);
      let good = true;
      eachCut(run.start, run.log, { random, subsets: LONG ? 5 : 2, every: 1 }, (cut) => {
        if (good) good = judge.visit(cut);
      });
      states += judge.states;
      reopened += judge.reopened;
      repairs += judge.repairs;
      if (!good) return;
    }
    t.log(`${states} states, ${reopened} opened for writing, ${repairs} of them changed at once`);
    t.true(states >= 400, `${states} states`);
    t.true(reopened >= 20, `${reopened} reopened`);
    // Stand-alone QED images have the need-check bit, so they are checked, and the bit is taken off.
    const hasDirtyBit = config.image.format === 'qed' && config.backing === undefined;
    t.is(repairs >= 10, hasDirtyBit, `${repairs} repaired`);
  });
}
