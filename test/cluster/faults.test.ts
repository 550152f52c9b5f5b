/**
 * Every named host operation fails, with EIO and with ENOSPC, once and until healed. A failed request is reported to its
 * caller and changes nothing but its own bytes; after the cause is gone the same request succeeds; what was flushed is
 * there after reopening. Only a failed sync is final: the host may have lost pages, so nothing is promised any more.
 */
import test, { type ExecutionContext } from 'ava';
import { maintain } from '../../src/block/open';
import { BlockError } from '../../src/errors';
import { readQedHeader } from '../../src/formats/qed/header';
import { formatByName } from '../../src/formats/registry';
import { type FaultRule, FaultyStorage } from '../../src/storage/faulty';
import { MemoryStorage } from '../../src/storage/memory';
import { KIB, MIB } from '../../src/units';
import { CLUSTER, type Operation, program, SIZE } from '../helpers/fault-program';
import { checkStorage, createInMemory, type OpenedChain, openChainOf } from '../helpers/images';
import { DiskModel, firstImpossible, type Perhaps, Scratch } from '../helpers/model';
import { LONG, patternBytes, Random, seedOf, squeezableBytes } from '../helpers/random';
import { Shadowed } from '../helpers/shadowed';

const BASE = 3 * MIB + 512;
const CAPACITY = 8 * MIB;

const SYNCS = ['flush-data', 'flush-l2', 'flush-header'] as const;
const WRITES = [
  'header-update',
  'l1-update',
  'l2-update',
  'l2-allocate',
  'cluster-grow',
  'cluster-free',
  'cow-write',
  'data-write',
] as const;
const COMMON = [...SYNCS, ...WRITES, 'read'] as const;
type Event = FaultRule['event'];

type TopFormat = 'qed' | 'qcow' | 'qcow2';
/** qcow2 has counts, and no dirty bit that would be written to a header. */
const EVENTS: Record<TopFormat, readonly Event[]> = {
  qed: COMMON,
  qcow: COMMON,
  qcow2: [...COMMON, 'refcount-update', 'refcount-allocate'],
};

const BASE_BYTES = patternBytes(0, BASE, 77);
const BASE_STORAGE = createInMemory({ format: 'raw', size: BASE }, BASE);
BASE_STORAGE.write(0, BASE_BYTES, 0, BASE, 'data-write');
const BASE_MODEL = new DiskModel(BASE);
BASE_MODEL.write(0, BASE_BYTES);

const FOUND = new Scratch();
const EXPECTED = new Scratch();

interface Subject {
  format: TopFormat;
  storage: MemoryStorage;
  base: MemoryStorage | undefined;
  chain: OpenedChain;
  faulty: FaultyStorage;
  shadow: Shadowed;
}

/** An image with flushed data of every kind: written, zeroed, dropped. */
function prepare(backed: boolean, format: TopFormat = 'qed'): Subject {
  // 64 bits a count: a block counts 512 clusters, and the program needs more.
  const image = {
    format,
    clusterSize: CLUSTER,
    tableSize: 1,
    refcountBits: format === 'qcow2' ? 64 : undefined,
    size: SIZE,
  };
  const storage = createInMemory(backed ? { ...image, backing: { name: 'base' } } : image, CAPACITY);
  const base = backed ? BASE_STORAGE : undefined;
  let faulty: FaultyStorage | undefined;
  const chain = openChainOf(base === undefined ? [storage] : [storage, base], {
    wrap: (lower) => {
      faulty = new FaultyStorage(lower);
      return faulty;
    },
  });
  if (faulty === undefined) throw new Error('nothing was wrapped');
  const shadow = new Shadowed(chain.node, new DiskModel(SIZE, backed ? BASE_MODEL : undefined));
  shadow.write(100, 3000);
  shadow.write(10 * CLUSTER, 10 * CLUSTER);
  if (format === 'qcow2') shadow.write(MIB, 230 * CLUSTER);
  shadow.writeZeroes(12 * CLUSTER, 2 * CLUSTER + 700);
  shadow.node.flush();
  shadow.writeZeroes(17 * CLUSTER, 2 * CLUSTER);
  shadow.node.flush();
  return { format, storage, base, chain, faulty, shadow };
}

class Trial {
  /** Ranges of failed requests that nobody repeated with success: old or new bytes, each by itself. */
  private readonly torn: Perhaps[] = [];
  /** Since the last flush that succeeded. */
  private later: Perhaps[] = [];
  private flushed: { model: Uint8Array; size: number };

  constructor(
    private readonly t: ExecutionContext,
    private readonly subject: Subject,
    private readonly rule: FaultRule,
    private readonly random: Random,
  ) {
    this.flushed = { model: subject.shadow.model.read(0, SIZE), size: SIZE };
  }

  /** @returns whether the fault was met */
  run(): boolean {
    const { subject, rule } = this;
    const { faulty } = subject;
    const operations = program(this.random);
    faulty.arm(rule);
    let failed: Operation | undefined;
    let at = 0;
    for (; at < operations.length && failed === undefined; at++) {
      if (!this.attempt(operations[at])) failed = operations[at];
    }
    this.sameOutside();
    // Another request meets the fault too, if it lasts.
    if (failed !== undefined && at < operations.length) this.attempt(operations[at]);
    this.sameOutside();
    faulty.heal();
    if (subject.chain.node.layer.state.failed) this.afterFailedSync();
    else this.afterHealing(failed, operations.slice(at));
    return faulty.fired > 0;
  }

  private get dirty(): boolean {
    return formatByName(this.subject.format).readHeader(this.subject.storage).dirty;
  }

  private get words(): string {
    const { event, errno, once, after, half } = this.rule;
    const short = half === true ? ', half written' : '';
    return `${this.subject.format}: ${event} ${errno} ${once ? 'once' : 'always'} after ${after}${short}`;
  }

  /** @returns false when it failed */
  private attempt(operation: Operation): boolean {
    const { shadow, chain, faulty } = this.subject;
    const model = shadow.model;
    const before = faulty.fired;
    const failed = chain.node.layer.state.failed;
    let bytes: Uint8Array | undefined;
    try {
      switch (operation.kind) {
        case 'write':
          bytes = patternBytes(operation.offset, operation.length, shadow.nextTag());
          chain.node.write(operation.offset, bytes, 0, bytes.length);
          break;
        case 'compressed':
          bytes = squeezableBytes(operation.offset, operation.length, shadow.nextTag());
          // A format without compressed clusters writes them plain here.
          chain.node.write(operation.offset, bytes, 0, bytes.length, { compressed: this.subject.format !== 'qed' });
          break;
        case 'zero':
          bytes = new Uint8Array(operation.length);
          chain.node.writeZeroes(operation.offset, operation.length);
          break;
        case 'allocate':
          chain.node.allocate(operation.offset, operation.length);
          break;
        case 'flush':
          chain.node.flush();
          this.later = [];
          this.flushed = { model: model.read(0, model.size), size: model.size };
          break;
        case 'maintain':
          maintain(chain.node, Date.now() + 3_600_000);
          break;
        case 'resize':
          chain.node.resize(operation.size);
          if (operation.size > model.size) model.resize(operation.size);
          break;
        case 'read':
          shadow.difference(0, 64 * KIB);
      }
    } catch (error) {
      this.t.true(error instanceof BlockError, `${this.words}: ${operation.kind}: ${error}`);
      if (!failed) {
        this.t.true(faulty.fired > before, `${this.words}: ${operation.kind} failed without a cause: ${error}`);
        this.t.is((error as BlockError).errnoName, this.rule.errno, this.words);
      }
      if (bytes !== undefined) this.torn.push({ offset: (operation as { offset: number }).offset, bytes });
      return false;
    }
    if (bytes !== undefined) {
      const { offset } = operation as { offset: number };
      model.write(offset, bytes);
      this.later.push({ offset, bytes });
    }
    return true;
  }

  /** Reads as the model says; inside failed requests each byte is old or new. */
  private sameOutside(): void {
    const { chain } = this.subject;
    this.subject.faulty.heal();
    const problem = this.compare(chain.node, this.torn);
    if (problem !== undefined) this.t.fail(`${this.words}: ${problem}`);
    if (!this.rule.once && this.subject.faulty.fired > 0) this.subject.faulty.arm({ ...this.rule, after: 0 });
    if (this.subject.faulty.fired === 0) this.subject.faulty.arm(this.rule);
  }

  private compare(node: OpenedChain['node'], perhaps: Perhaps[]): string | undefined {
    const { model } = this.subject.shadow;
    const size = node.size();
    const found = FOUND.takeUnread(size);
    node.read(0, found, 0, size);
    // What is behind the end of the model, on a disk that grew or did not grow, reads zero.
    const expected = EXPECTED.take(size).fill(0, Math.min(size, model.size));
    model.read(0, Math.min(size, model.size), expected);
    const at = firstImpossible(found, expected, perhaps);
    return at < 0 ? undefined : `byte ${at} reads ${found[at]}, expected ${expected[at]}`;
  }

  private afterHealing(failed: Operation | undefined, rest: Operation[]): void {
    const { chain, shadow, storage, base } = this.subject;
    if (failed !== undefined) this.t.true(this.attempt(failed), `${this.words}: ${failed.kind} fails again`);
    // Whatever a failed request left half done, a write of the whole range makes certain.
    for (const { offset, bytes } of this.torn.splice(0)) {
      chain.node.write(offset, bytes, 0, bytes.length);
      shadow.model.write(offset, bytes);
    }
    for (const operation of rest)
      this.t.true(this.attempt(operation), `${this.words}: ${operation.kind} after healing`);
    this.t.is(shadow.differenceAnywhere(), undefined, this.words);
    chain.finish();
    const again = openChainOf(base === undefined ? [storage] : [storage, base], { readOnly: true });
    shadow.node = again.node;
    this.t.is(shadow.differenceAnywhere(), undefined, `${this.words}: after reopening`);
    const result = checkStorage(storage);
    this.t.deepEqual(
      [result.corruptions, result.checkErrors, this.subject.format === 'qcow' ? 0 : result.leaks],
      [0, 0, 0],
      `${this.words}: ${result.messages}`,
    );
    this.t.false(this.dirty, this.words);
  }

  private afterFailedSync(): void {
    const { chain, shadow, storage, base, faulty } = this.subject;
    const { words, t } = this;
    const { dirty } = this;
    const tables = () => (faulty.seen.get('l1-update') ?? 0) + (faulty.seen.get('l2-update') ?? 0);
    const written = tables();
    for (let i = 0; i < 3; i++) {
      const error = t.throws(() => chain.node.flush(), { instanceOf: BlockError }, words);
      t.is(error?.code, 'IO');
    }
    maintain(chain.node, Date.now() + 3_600_000);
    this.attempt({ kind: 'write', offset: 70 * CLUSTER, length: 100 });
    this.attempt({ kind: 'zero', offset: 11 * CLUSTER, length: CLUSTER });
    t.throws(() => chain.finish(), { instanceOf: BlockError }, words);
    t.is(tables(), written, `${words}: tables were written after a failed sync`);
    t.is(this.dirty, dirty, `${words}: the need-check bit changed`);
    const layers = base === undefined ? [storage] : [storage, base];
    const flushed = { offset: 0, bytes: this.flushed.model };
    for (const readOnly of [true, false]) {
      const again = openChainOf(layers, { readOnly });
      t.true([this.flushed.size, shadow.model.size, SIZE + MIB].includes(again.node.size()), words);
      const problem = this.compare(again.node, [flushed, ...this.torn, ...this.later]);
      if (problem !== undefined) t.fail(`${words}: reopened: ${problem}`);
      if (readOnly) continue;
      const bytes = patternBytes(0, 5000, 31);
      again.node.write(CLUSTER - 10, bytes, 0, bytes.length);
      again.node.flush();
      again.finish();
    }
    const result = checkStorage(storage);
    t.deepEqual([result.corruptions, result.checkErrors], [0, 0], `${words}: ${result.messages}`);
    t.false(this.dirty, words);
  }
}

for (const [index, format] of (['qed', 'qcow', 'qcow2'] as const).entries()) {
  test(`${format}: every event × EIO/ENOSPC/short write × once/always: reported, undone, repeated, reopened`, (t) => {
    const random = new Random(seedOf(t, 600 + index));
    const fired = new Set<string>();
    const afters = Array.from({ length: LONG ? 40 : 1 }, (_, after) => after);
    const trialsOfEach = afters.flatMap((after) => [false, true].map((backed) => ({ after, backed })));
    if (!LONG) trialsOfEach.push({ after: 2, backed: true });
    let trials = 0;
    const whole = ['EIO', 'ENOSPC'].flatMap((errno) => [true, false].map((once) => ({ errno, once })));
    const kinds = [...whole, { errno: 'ENOSPC', once: true, half: true }];
    for (const event of EVENTS[format]) {
      for (const [number, kind] of kinds.entries()) {
        for (const trial of trialsOfEach) {
          const rule = { event, ...kind, after: trial.after };
          if (new Trial(t, prepare(trial.backed, format), rule, random).run()) fired.add(`${event} ${number}`);
          trials++;
        }
      }
    }
    t.log(`${trials} trials, ${fired.size} combinations`);
    const missing = EVENTS[format]
      .flatMap((event) => kinds.map((_, number) => `${event} ${number}`))
      .filter((name) => !fired.has(name));
    t.deepEqual(missing, []);
  });
}

test('create and check-repair fail: reported, and the next attempt succeeds', (t) => {
  let fired = 0;
  for (const errno of ['EIO', 'ENOSPC']) {
    for (const once of [true, false]) {
      for (let after = 0; after < 8; after++) {
        const storage = MemoryStorage.create(CAPACITY);
        const faulty = new FaultyStorage(storage);
        faulty.arm({ event: 'create', errno, once, after });
        const create = () => formatByName('qed').create?.(faulty, { size: SIZE, clusterSize: CLUSTER });
        try {
          create();
        } catch (error) {
          t.is((error as BlockError).errnoName, errno);
          fired++;
        }
        faulty.heal();
        create();
        t.is(checkStorage(storage).corruptions, 0);
      }
      for (let after = 0; after < 8; after++) {
        const { storage, chain } = prepare(false);
        chain.node.write(SIZE - 5000, patternBytes(0, 5000, 1), 0, 5000);
        // Left open, as after kill -9: dirty, and with clusters that nothing names.
        const faulty = new FaultyStorage(storage);
        for (const event of ['check-repair', 'header-update'] as const) faulty.arm({ event, errno, once, after });
        try {
          openChainOf([storage], { wrap: () => faulty });
        } catch (error) {
          t.is((error as BlockError).errnoName, errno);
          t.true(readQedHeader(storage).dirty || faulty.fired === 0 || after > 0);
          fired++;
        }
        faulty.heal();
        openChainOf([storage], { wrap: () => faulty }).finish();
        t.deepEqual([checkStorage(storage).corruptions, checkStorage(storage).leaks], [0, 0]);
        t.false(readQedHeader(storage).dirty);
      }
    }
  }
  t.true(fired >= 16, `${fired} failures`);
});

test('a full disk during writes: nothing is lost, and all succeeds once there is room', (t) => {
  const storage = createInMemory({ format: 'qed', clusterSize: CLUSTER, tableSize: 1, size: SIZE }, 2 * MIB);
  const chain = openChainOf([storage]);
  const shadow = new Shadowed(chain.node, new DiskModel(SIZE));
  let full = 0;
  for (let at = 0; at < SIZE - 64 * KIB; at += 64 * KIB) {
    try {
      shadow.write(at, 64 * KIB);
    } catch (error) {
      t.is((error as BlockError).code, 'NO_SPACE');
      // Runs before the full one are there; the rest reads as before.
      shadow.model.write(at, readAll(chain.node, at, 64 * KIB));
      full++;
    }
  }
  t.true(full > 5, `${full} writes met the full disk`);
  t.is(shadow.differenceAnywhere(), undefined);
  chain.node.flush();
  shadow.writeZeroes(0, MIB);
  chain.node.flush();
  chain.node.flush();
  shadow.write(3 * MIB, 512 * KIB);
  chain.finish();
  shadow.node = openChainOf([storage], { readOnly: true }).node;
  t.is(shadow.differenceAnywhere(), undefined);
  t.deepEqual([checkStorage(storage).corruptions, checkStorage(storage).leaks], [0, 0]);
});

function readAll(node: OpenedChain['node'], offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  node.read(offset, bytes, 0, length);
  return bytes;
}
