/** What `locate()` says is where `read()` would look: whoever reads there by himself gets the same bytes. */
import * as fs from 'node:fs';
import test from 'ava';
import { attachChain } from '../../src/block/open';
import { openSnapshot, takeSnapshot } from '../../src/block/snapshots';
import { attachStorage } from '../../src/storage/attach';
import type { HostPlace } from '../../src/storage/storage';
import { KIB, MIB } from '../../src/units';
import { Random, seedOf } from '../helpers/random';
import { type ChainConfig, makeChain } from '../helpers/shadowed';

const SIZE = 4 * MIB + 512;
const LONGEST = 64 * KIB;
const ROUNDS = 1000;

const CONFIGS: (ChainConfig & { compressed?: true; snapshot?: true })[] = [
  { name: 'raw', layers: [{ format: 'raw', size: SIZE }] },
  { name: 'qed', layers: [{ format: 'qed', size: SIZE, clusterSize: 4 * KIB, tableSize: 1 }] },
  {
    name: 'qed over a shorter raw',
    layers: [
      { format: 'qed', size: SIZE, clusterSize: 64 * KIB },
      { format: 'raw', size: 3 * MIB },
    ],
  },
  {
    name: 'qcow2 with subclusters and compressed clusters over qcow2',
    compressed: true,
    layers: [
      { format: 'qcow2', size: SIZE, clusterSize: 64 * KIB, extendedL2: true },
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
  test(`${config.name}: what lies where locate() says is what read() reads`, (t) => {
    const random = new Random(seedOf(t, 12));
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
    const live = attachChain(image.describe(), 2, attachStorage);
    const node = snapshot ? openSnapshot(live, snapshot.id) : live;
    const place: HostPlace = { fd: -1, offset: 0 };
    const expected = new Uint8Array(LONGEST);
    const found = new Uint8Array(LONGEST);
    // The tables are in the cache from now on.
    for (let offset = 0; offset < SIZE; offset += LONGEST)
      node.read(offset, expected, 0, Math.min(LONGEST, SIZE - offset));
    const before = node.statistics();
    let located = 0;
    for (let round = 0; round < ROUNDS; round++) {
      const offset = random.below(SIZE + LONGEST);
      // Short ones lie in one piece more often.
      const length = 1 + random.below(round % 2 === 0 ? 512 : LONGEST);
      let count = -1;
      node.holding(() => {
        if (node.locate(offset, length, place)) count = fs.readSync(place.fd, found, 0, length, place.offset);
      });
      if (count < 0) continue;
      located++;
      if (offset + length > SIZE) t.fail(`${offset}+${length} is past the end`);
      node.read(offset, expected, 0, length);
      // Only the end of a file cuts a read, and there the rest is zero.
      found.fill(0, count, length);
      if (!Buffer.from(found.subarray(0, length)).equals(expected.subarray(0, length)))
        t.fail(`${offset}+${length} differs`);
    }
    t.true(located > ROUNDS / 20, `${located} of ${ROUNDS} ranges were located`);
    if (!snapshot) t.is(node.statistics().readOperations, before.readOperations + located, 'locate() counts nothing');
    node.countReads(3, 1000);
    t.is(node.statistics().readBytes - before.readBytes >= 1000, !snapshot, 'a snapshot has no counters');
    t.is(shadow.differenceAnywhere(), undefined);
  });
}

test('locate() says no where a read has to know more: zeroes, compressed clusters, several pieces, the end', (t) => {
  const config: ChainConfig = { name: 'qcow2', layers: [{ format: 'qcow2', size: SIZE, clusterSize: 64 * KIB }] };
  const chain = makeChain(t, config, () => []);
  const { shadow } = chain;
  // The second cluster lies before the first in the file.
  shadow.write(64 * KIB, 64 * KIB);
  shadow.write(0, 64 * KIB);
  shadow.writeZeroes(128 * KIB, 64 * KIB);
  shadow.writeCompressed(192 * KIB, 64 * KIB);
  const place: HostPlace = { fd: -1, offset: 0 };
  const isLocated = (offset: number, length: number): boolean => {
    let answer = false;
    const { node } = chain.image;
    node.holding(() => {
      answer = node.locate(offset, length, place);
    });
    return answer;
  };
  t.true(isLocated(0, 64 * KIB));
  t.true(isLocated(64 * KIB, 64 * KIB));
  t.false(isLocated(60 * KIB, 8 * KIB), 'two pieces');
  t.false(isLocated(128 * KIB, 4 * KIB), 'zeroes');
  t.false(isLocated(192 * KIB, 4 * KIB), 'compressed');
  t.false(isLocated(256 * KIB, 4 * KIB), 'not allocated');
  t.false(isLocated(0, 0), 'nothing');
  t.false(isLocated(SIZE, 1), 'past the end');
  t.false(isLocated(SIZE - 512, 1024), 'across the end');
  // An empty cache: it takes reading to know.
  chain.reopen();
  t.false(isLocated(0, 4 * KIB));
  chain.image.node.read(0, new Uint8Array(512), 0, 512);
  t.true(isLocated(0, 4 * KIB));
});

for (const format of ['qed', 'qcow2'] as const) {
  test(`${format}: what was located stays there while it is held, though others free the cluster and write elsewhere`, (t) => {
    const cluster = 64 * KIB;
    const { image, shadow } = makeChain(
      t,
      { name: format, layers: [{ format, size: SIZE, clusterSize: cluster }] },
      () => [],
    );
    shadow.write(0, cluster);
    image.node.flush();
    const holder = attachChain(image.describe(), 2, attachStorage);
    const place: HostPlace = { fd: -1, offset: 0 };
    const before = Buffer.from(shadow.model.read(0, cluster));
    const now = Buffer.alloc(cluster);
    // Frees the cluster, makes that durable, and looks for room again and again.
    const useItsPlace = (first: number): void => {
      for (let number = first; number < first + 8; number++) {
        image.node.flush();
        shadow.write(number * cluster, cluster);
      }
    };
    let held = false;
    holder.holding(() => {
      held = holder.locate(0, cluster, place);
      shadow.writeZeroes(0, cluster);
      useItsPlace(1);
      fs.readSync(place.fd, now, 0, cluster, place.offset);
    });
    t.true(held);
    t.true(now.equals(before));
    useItsPlace(9);
    fs.readSync(place.fd, now, 0, cluster, place.offset);
    t.false(now.equals(before), 'and was really wanted by others: the test would else prove nothing');
    t.is(shadow.differenceAnywhere(), undefined);
  });
}
