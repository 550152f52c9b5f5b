/** What `locate()` says is where `read()` would look: whoever reads there by himself gets the same bytes. */
import * as fs from 'node:fs';
import test from 'ava';
import { attachChain } from '../../src/block/open';
import { attachStorage } from '../../src/storage/attach';
import type { HostPlace } from '../../src/storage/storage';
import { KIB } from '../../src/units';
import { Random, seedOf } from '../helpers/random';
import { type ChainConfig, makeChain } from '../helpers/shadowed';
import { makeVaried, VARIED_CHAINS, VARIED_SIZE } from '../helpers/varied-chains';

const SIZE = VARIED_SIZE;
const LONGEST = 64 * KIB;
const ROUNDS = 1000;

for (const config of VARIED_CHAINS) {
  test(`${config.name}: what lies where locate() says is what read() reads`, (t) => {
    const random = new Random(seedOf(t, 12));
    const { node, shadow } = makeVaried(t, config, attachStorage);
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
    if (!config.snapshot)
      t.is(node.statistics().readOperations, before.readOperations + located, 'locate() counts nothing');
    node.countReads(3, 1000);
    t.is(node.statistics().readBytes - before.readBytes >= 1000, !config.snapshot, 'a snapshot has no counters');
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
