/** The contract of a block node, for raw and QED images in chains, over geometries that differ in where boundaries lie. */
import * as path from 'node:path';
import test from 'ava';
import { GIB, KIB, MIB } from '../../src/units';
import { checkFile, createImage, open, temporaryDirectory } from '../helpers/images';
import { DiskModel } from '../helpers/model';
import { nodeSuite, qedSpans } from '../helpers/node-suite';
import { Shadowed } from '../helpers/shadowed';

const qed = (clusterSize: number, tableSize: number, size: number) =>
  ({ format: 'qed', clusterSize, tableSize, size }) as const;
const raw = (size: number) => ({ format: 'raw', size }) as const;

/** Three L2 tables of 2 MiB each, and a part of a cluster. */
const SMALL = 3 * 2 * MIB + 5 * 512;

nodeSuite(test, {
  name: 'raw',
  layers: [raw(SMALL)],
  spans: { cluster: 64 * KIB, slice: 1 * MIB, table: 2 * MIB },
  longest: 64 * KIB,
});

nodeSuite(test, {
  name: 'qed 4 KiB table 1',
  layers: [qed(4 * KIB, 1, SMALL)],
  spans: qedSpans(4 * KIB, 1),
  longest: 4 * KIB,
});

nodeSuite(test, {
  name: 'qed 4 KiB table 16 over shorter raw',
  layers: [qed(4 * KIB, 16, 40 * MIB + 7 * 512), raw(33 * MIB + 3 * 512)],
  spans: qedSpans(4 * KIB, 16),
  longest: 4 * KIB,
});

nodeSuite(test, {
  name: 'qed 64 KiB table 1 over longer raw',
  layers: [qed(64 * KIB, 1, 600 * MIB + 3 * 512), raw(601 * MIB)],
  spans: qedSpans(64 * KIB, 1),
  longest: 64 * KIB,
});

nodeSuite(test, {
  name: 'qed over qed over raw, three cluster sizes',
  layers: [qed(4 * KIB, 1, SMALL), qed(64 * KIB, 4, SMALL + 200 * KIB), raw(4 * MIB + 512)],
  spans: qedSpans(4 * KIB, 1),
  longest: 64 * KIB,
});

nodeSuite(test, {
  name: 'qed 2 MiB table 1 over qed 4 KiB',
  layers: [qed(2 * MIB, 1, 5 * MIB + 512), qed(4 * KIB, 16, 5 * MIB + 64 * KIB)],
  spans: { cluster: 2 * MIB, slice: 4 * MIB, table: 5 * MIB },
  longest: 2 * MIB,
});

nodeSuite(test, {
  name: 'qed 2 MiB table 16',
  layers: [qed(2 * MIB, 16, 8 * 1024 * GIB + 3 * 512)],
  spans: qedSpans(2 * MIB, 16),
  longest: 2 * MIB,
});

nodeSuite(test, {
  name: 'qed 64 MiB table 1',
  layers: [qed(64 * MIB, 1, 600 * 1024 * GIB + 512)],
  spans: qedSpans(64 * MIB, 1),
  longest: 64 * KIB,
});

test('create and open: all 75 legal geometries take a write at both ends and in the middle', (t) => {
  let cases = 0;
  for (let clusterSize = 4 * KIB; clusterSize <= 64 * MIB; clusterSize *= 2) {
    for (const tableSize of [1, 2, 4, 8, 16]) {
      const file = path.join(temporaryDirectory(t), 'a.qed');
      const entries = BigInt(clusterSize * tableSize) / 8n;
      const most = entries * entries * BigInt(clusterSize);
      const size = most > BigInt(Number.MAX_SAFE_INTEGER) ? Number.MAX_SAFE_INTEGER - 511 : Number(most);
      createImage(file, qed(clusterSize, tableSize, size));
      const shadow = new Shadowed(undefined as never, new DiskModel(size));
      for (const round of ['write', 'read'] as const) {
        const image = open(file);
        shadow.node = image.node;
        try {
          const middle = Math.floor(size / 2);
          for (const offset of [0, middle - (middle % 512) - 256, size - 700]) {
            if (round === 'write') shadow.write(offset, 700);
            const found = shadow.difference(offset, 700);
            if (found !== undefined) t.fail(`${clusterSize} x ${tableSize}: ${found}`);
          }
        } finally {
          image.close();
        }
      }
      const result = checkFile(file);
      if (result.corruptions + result.checkErrors + result.leaks > 0) {
        t.fail(`${clusterSize} x ${tableSize}: ${result.messages.join('; ')}`);
      }
      cases++;
    }
  }
  t.is(cases, 75);
});
