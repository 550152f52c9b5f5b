/** What `prefetch()` has the host fetch is what the read after it reads: anything else would be time lost for the disk. */
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { BlockNode } from '../../src/block/node';
import { attachChain } from '../../src/block/open';
import { openSnapshot, takeSnapshot } from '../../src/block/snapshots';
import { attachStorage } from '../../src/storage/attach';
import { PassingStorage } from '../../src/storage/passing';
import type { Storage } from '../../src/storage/storage';
import { KIB, MIB } from '../../src/units';
import { Random, seedOf } from '../helpers/random';
import { type ChainConfig, makeChain } from '../helpers/shadowed';

const SIZE = 4 * MIB + 512;
const LONGEST = 300 * KIB;
const ROUNDS = 200;

type Log = { fetched: string[]; read: string[] };

class NotingStorage extends PassingStorage {
  constructor(
    below: Storage,
    private readonly log: Log,
  ) {
    super(below);
  }

  override read(offset: number, target: Uint8Array, at: number, length: number): number {
    this.log.read.push(this.note(offset, length));
    return super.read(offset, target, at, length);
  }

  override prefetch(offset: number, length: number): void {
    this.log.fetched.push(this.note(offset, length));
    super.prefetch(offset, length);
  }

  private note(offset: number, length: number): string {
    return `${path.basename(this.path)} ${offset}+${length}`;
  }
}

/** Ranges of any place and length, past the end as well. @returns how many host ranges were read */
function compare(t: ExecutionContext, node: BlockNode, log: Log, random: Random): number {
  const bytes = new Uint8Array(SIZE);
  // The tables are in the cache from now on, so only data is read.
  node.read(0, bytes, 0, node.size());
  let ranges = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const offset = random.below(SIZE);
    const length = 1 + random.below(LONGEST);
    log.fetched = [];
    log.read = [];
    node.prefetch(offset, length);
    if (log.read.length > 0) t.fail(`prefetch ${offset}+${length} read ${log.read}`);
    node.read(offset, bytes, 0, Math.min(length, node.size() - offset));
    // Some compressed clusters are still there, unpacked.
    const missed = log.read.filter((range) => !log.fetched.includes(range));
    if (missed.length > 0) t.fail(`prefetch ${offset}+${length} missed ${missed}`);
    ranges += log.read.length;
  }
  return ranges;
}

const CONFIGS: (ChainConfig & { compressed?: true; snapshot?: true })[] = [
  { name: 'raw', layers: [{ format: 'raw', size: SIZE }] },
  {
    name: 'qed over a shorter raw',
    layers: [
      { format: 'qed', size: SIZE, clusterSize: 4 * KIB, tableSize: 1 },
      { format: 'raw', size: 3 * MIB },
    ],
  },
  {
    name: 'qcow2 with compressed clusters over qcow2',
    compressed: true,
    layers: [
      { format: 'qcow2', size: SIZE, clusterSize: 64 * KIB },
      { format: 'qcow2', size: SIZE + MIB, clusterSize: 4 * KIB },
    ],
  },
  {
    name: 'a snapshot of qcow2 over qcow',
    snapshot: true,
    layers: [
      { format: 'qcow2', size: SIZE, clusterSize: 4 * KIB },
      { format: 'qcow', size: SIZE },
    ],
  },
];

for (const config of CONFIGS) {
  test(`${config.name}: prefetch() fetches what read() reads`, (t) => {
    const random = new Random(seedOf(t, 11));
    const { image, shadow } = makeChain(t, config, (size) => [
      { offset: 0, length: MIB },
      { offset: MIB + 100 * KIB, length: size - MIB - 100 * KIB },
    ]);
    shadow.write(512 * KIB, 300 * KIB);
    shadow.writeZeroes(700 * KIB, 10 * KIB);
    shadow.write(2 * MIB + 5, 64 * KIB);
    if (config.compressed) shadow.writeCompressed(3 * MIB, 256 * KIB);
    const snapshot = config.snapshot ? takeSnapshot(image.node, 'before') : undefined;
    if (snapshot) shadow.write(0, MIB);
    const log: Log = { fetched: [], read: [] };
    const live = attachChain(image.describe(), 2, (layer) => new NotingStorage(attachStorage(layer), log));
    const node = snapshot ? openSnapshot(live, snapshot.id) : live;
    const ranges = compare(t, node, log, random);
    t.true(ranges > ROUNDS / 2, `${ranges} ranges read`);
    t.is(shadow.differenceAnywhere(), undefined);
  });
}

test('prefetch() changes nothing and asks for nothing past the end', (t) => {
  const { image } = makeChain(t, { name: 'raw', layers: [{ format: 'raw', size: SIZE }] }, () => []);
  const log: Log = { fetched: [], read: [] };
  const node = attachChain(image.describe(), 2, (layer) => new NotingStorage(attachStorage(layer), log));
  node.prefetch(SIZE, 4096);
  node.prefetch(SIZE + MIB, 4096);
  t.deepEqual(log, { fetched: [], read: [] });
  node.prefetch(SIZE - 512, 4096);
  t.deepEqual(log, { fetched: [`0.raw ${SIZE - 512}+512`], read: [] });
  t.is(node.statistics().readOperations, 0);
});
