/**
 * Power cuts while a snapshot is taken, deleted, renamed or reverted to. In every state that the host may leave, the change
 * is done or not done, every snapshot in the list reads as it was, and so does the disk; and when somebody then writes all
 * over the disk, no snapshot changes. Leaks are allowed, and copied flags that a repair puts right.
 */
import test, { type ExecutionContext } from 'ava';
import type { BlockNode } from '../../src/block/node';
import { formatByName } from '../../src/formats/registry';
import { MemoryStorage } from '../../src/storage/memory';
import { type RecordedOperation, RecordingStorage } from '../../src/storage/recording';
import { KIB } from '../../src/units';
import { checkStorage, createInMemory, openChainOf } from '../helpers/images';
import { type Cut, eachCut, FileState } from '../helpers/power-cut';
import { LONG, patternBytes, Random, seedOf } from '../helpers/random';
import type { SnapshotImage } from '../helpers/snapshot-images';
import { contentOf, firstDifference, type ModelSnapshot, SnapshotModel } from '../helpers/snapshot-model';

const CAPACITY = 3 * 1024 * KIB;
const qcow2 = 'qcow2' as const;

const IMAGES: SnapshotImage[] = [
  { name: '4 KiB clusters', image: { format: qcow2, clusterSize: 4 * KIB }, size: 256 * KIB },
  // The L1 table has several clusters, and each has a refcount block soon.
  {
    name: '512-byte clusters, 64-bit counts',
    image: { format: qcow2, clusterSize: 512, refcountBits: 64 },
    size: 3100 * KIB,
  },
  {
    name: 'version 2 over a file',
    image: { format: qcow2, clusterSize: KIB, version: 2 },
    size: 128 * KIB,
    backing: 100 * KIB,
  },
  { name: 'subclusters', image: { format: qcow2, clusterSize: 16 * KIB, extendedL2: true }, size: 512 * KIB },
];

type Operation = 'take' | 'delete' | 'revert' | 'rename';
const OPERATIONS: readonly Operation[] = ['take', 'delete', 'revert', 'rename'];

/** The disk and its snapshots at one moment. */
interface Moment {
  live: Uint8Array;
  snapshots: ModelSnapshot[];
}

const momentOf = (model: SnapshotModel): Moment => ({
  live: model.live.slice(),
  snapshots: model.snapshots.map((snapshot) => ({ ...snapshot })),
});

interface Run {
  start: FileState;
  log: RecordedOperation[];
  before: Moment;
  after: Moment;
  base: MemoryStorage | undefined;
}

/** An image with snapshots and shared clusters, and then one operation, recorded. */
function record({ image, size, backing }: SnapshotImage, operation: Operation, random: Random): Run {
  const base = backing === undefined ? undefined : createInMemory({ format: 'raw', size: backing }, backing);
  base?.write(0, patternBytes(0, backing ?? 0, 77), 0, backing ?? 0, 'data-write');
  const named = base === undefined ? undefined : { name: 'base', format: 'raw' };
  const storage = createInMemory({ ...image, size, backing: named }, CAPACITY);
  const log: RecordedOperation[] = [];
  const chain = openChainOf(base === undefined ? [storage] : [storage, base], {
    wrap: (below) => new RecordingStorage(below, log),
  });
  const options = { cluster: image.clusterSize ?? 0, most: 3, grows: image.version !== 2 };
  const model = new SnapshotModel(chain.node, random, options);
  // Not so much that a check names only a part of what it finds.
  for (let step = 0; step < 14; step++) model.step();
  while (model.snapshots.length < 2) model.take();
  for (let step = 0; step < 4; step++) model.write();
  // Dirty tables and, half of the time, dropped clusters that wait for their release.
  model.node.flush();
  if (random.chance(0.5)) for (let step = 0; step < 2; step++) model.write();
  model.node.flush();
  const start = new FileState(CAPACITY);
  start.length = storage.size();
  storage.read(0, start.bytes, 0, start.length);
  log.length = 0;
  const before = momentOf(model);
  model[operation]();
  return { start, log: [...log], before, after: momentOf(model), base };
}

class Judge {
  states = 0;
  done = 0;
  overwritten = 0;
  private readonly storage = MemoryStorage.create(CAPACITY);

  constructor(
    private readonly run: Run,
    private readonly random: Random,
  ) {}

  /** @returns what is wrong */
  visit({ state, given }: Cut): string | undefined {
    this.states++;
    const { storage, run } = this;
    storage.truncate(0, 'create');
    storage.write(0, state.bytes, 0, state.length, 'create');
    const unsound = this.unsound();
    if (unsound !== undefined) return unsound;
    const layers = run.base === undefined ? [storage] : [storage, run.base];
    const found = openChainOf(layers, { readOnly: true }).node;
    const isDone = this.differs(found, run.after) === undefined;
    if (isDone) this.done++;
    else if (given === run.log.length) return `it has returned and is not done: ${this.differs(found, run.after)}`;
    const moment = isDone ? run.after : run.before;
    const problem = this.differs(found, moment);
    if (problem !== undefined) return problem;
    if (!this.random.chance(LONG ? 0.5 : 0.3)) return undefined;
    return this.overwrite(layers, moment) ?? this.repair(layers, moment);
  }

  /** Every part of the disk that holds something, now or in a snapshot, is written. No snapshot may change, whatever state the counts and flags are in. */
  private overwrite(layers: MemoryStorage[], { live, snapshots }: Moment): string | undefined {
    this.overwritten++;
    const chain = openChainOf(layers);
    const written = live.slice();
    for (let offset = 0; offset < live.length; offset += 1000) {
      const end = Math.min(live.length, offset + 1000);
      const holds = [live, ...snapshots.map(({ bytes }) => bytes)].some((bytes) =>
        bytes.subarray(offset, end).some((byte) => byte !== 0),
      );
      if (!holds) continue;
      written.set(patternBytes(offset, end - offset, 4711), offset);
      chain.node.write(offset, written, offset, end - offset);
    }
    chain.finish();
    const problem = this.differs(openChainOf(layers, { readOnly: true }).node, { live: written, snapshots });
    return problem === undefined ? this.unsound() : `after the disk was overwritten, ${problem}`;
  }

  private repair(layers: MemoryStorage[], { snapshots }: Moment): string | undefined {
    const { storage } = this;
    const module = formatByName('qcow2');
    module.check?.(module.readHeader(storage), storage, 'all');
    const { corruptions, checkErrors, leaks, messages } = checkStorage(storage);
    if (corruptions + checkErrors + leaks > 0) return `after a repair: ${messages.join('; ')}`;
    const node = openChainOf(layers, { readOnly: true }).node;
    return this.differs(node, { live: contentOf(node), snapshots });
  }

  private differs(node: BlockNode, { live, snapshots }: Moment): string | undefined {
    const size = firstDifference(contentOf(node), live);
    if (size !== undefined) return `the disk: ${size}`;
    const model = new SnapshotModel(node, this.random, { cluster: 0, most: 0, grows: false });
    model.snapshots = snapshots;
    return model.problem();
  }

  /** No error but for flags, which are in other sectors than the counts. */
  private unsound(): string | undefined {
    const { corruptions, checkErrors, messages } = checkStorage(this.storage);
    const flags = messages.filter((message) => message.includes('OFLAG_COPIED'));
    if (checkErrors === 0 && corruptions === flags.length) return undefined;
    return messages.filter((message) => !message.startsWith('Leaked')).join('; ');
  }
}

function cutEverywhere(t: ExecutionContext, image: SnapshotImage, operation: Operation, random: Random): void {
  const run = record(image, operation, random);
  const judge = new Judge(run, random);
  let problem: string | undefined;
  eachCut(run.start, run.log, { random, subsets: LONG ? 6 : 3, every: 1 }, (cut) => {
    if (problem !== undefined) return;
    const found = judge.visit(cut);
    if (found !== undefined)
      problem = `cut after ${cut.given} of ${run.log.length}${cut.torn ? ', torn' : ''}: ${found}`;
  });
  t.is(problem, undefined, `${operation}, ${image.name}`);
  t.true(judge.done > 0 && judge.done < judge.states, `${operation}: ${judge.done} of ${judge.states} states are done`);
}

for (const [index, image] of IMAGES.entries()) {
  for (const [number, operation] of OPERATIONS.entries()) {
    test(`${image.name}, ${operation}: a power cut leaves it done or not done`, (t) => {
      const random = new Random(seedOf(t, 8300 + index * 10 + number));
      for (let program = 0; program < (LONG ? 60 : 1); program++) cutEverywhere(t, image, operation, random);
    });
  }
}
