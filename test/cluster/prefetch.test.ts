/** What `prefetch()` has the host fetch is what the read after it reads: anything else would be time lost for the disk. */
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { BlockNode } from '../../src/block/node';
import { attachChain } from '../../src/block/open';
import { attachStorage } from '../../src/storage/attach';
import { PassingStorage } from '../../src/storage/passing';
import type { Storage } from '../../src/storage/storage';
import { KIB, MIB } from '../../src/units';
import { Random, seedOf } from '../helpers/random';
import { makeChain } from '../helpers/shadowed';
import { makeVaried, VARIED_CHAINS, VARIED_SIZE } from '../helpers/varied-chains';

const SIZE = VARIED_SIZE;
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

for (const config of VARIED_CHAINS) {
  test(`${config.name}: prefetch() fetches what read() reads`, (t) => {
    const random = new Random(seedOf(t, 11));
    const log: Log = { fetched: [], read: [] };
    const { node, shadow } = makeVaried(t, config, (layer) => new NotingStorage(attachStorage(layer), log));
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
