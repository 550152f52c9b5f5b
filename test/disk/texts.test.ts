/** The `.json` files beside `disk`, against qemu-img on the same image. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { MIB } from '../../src/units';
import { required, workspace } from '../mount/cli';
import {
  CLUSTER,
  createImage,
  DISK_SIZE,
  isInstalled,
  mount,
  noise,
  onBothSessions,
  overlayImage,
  program,
  standAloneImage,
  succeed,
} from './disk-mount';

interface MapEntry {
  start: number;
  length: number;
  depth: number;
  present: boolean;
  zero: boolean;
  data: boolean;
  offset?: number;
}

function readJson<T>(...parts: string[]): T {
  return JSON.parse(fs.readFileSync(path.join(...parts), 'utf8')) as T;
}

onBothSessions('info.json and map.json say what qemu-img says', async (t, session) => {
  if (!required(t, await isInstalled('qemu-img'), 'qemu-img is not installed')) return;
  const directory = workspace(t);
  const { image } = overlayImage(directory);
  const { mountpoint, disk, unmount } = await mount(t, session, [image]);
  const fd = fs.openSync(disk, 'r+');
  for (const cluster of [0, 1, 5, 90, 127]) fs.writeSync(fd, noise(CLUSTER, cluster), 0, CLUSTER, cluster * CLUSTER);
  fs.closeSync(fd);
  const info = readJson<Record<string, unknown>>(mountpoint, 'info.json');
  const map = readJson<MapEntry[]>(mountpoint, 'map.json');
  await unmount();

  const said = JSON.parse((await succeed(t, 'qemu-img', ['info', '--output=json', image])).stdout) as Record<
    string,
    unknown
  >;
  for (const name of [
    'virtual-size',
    'filename',
    'format',
    'cluster-size',
    'backing-filename',
    'full-backing-filename',
    'backing-filename-format',
  ]) {
    t.deepEqual(info[name], said[name], name);
  }
  t.is(info['dirty-flag'], false);
  const mapped = JSON.parse((await succeed(t, 'qemu-img', ['map', '--output=json', image])).stdout) as (MapEntry & {
    compressed?: boolean;
  })[];
  const brief = (entries: MapEntry[]) =>
    entries.map(
      ({ start, length, depth, zero, data, offset }) => `${start}+${length} ${depth} ${zero} ${data} ${offset}`,
    );
  t.deepEqual(brief(map), brief(mapped));
});

onBothSessions("a layer's map.json lists what that layer alone holds", async (t, session) => {
  const directory = workspace(t);
  const { image } = overlayImage(directory);
  const { mountpoint, disk } = await mount(t, session, [image]);
  fs.writeFileSync(disk, noise(2 * CLUSTER, 7), { flag: 'r+' });
  const held = (entries: MapEntry[]) =>
    entries.filter(({ data }) => data).map(({ start, length, depth }) => [start, length, depth]);
  t.deepEqual(held(readJson(mountpoint, 'layers/0-vm.qed/map.json')), [[0, 2 * CLUSTER, 0]]);
  const below = readJson<MapEntry[]>(mountpoint, 'layers/1-base.img/map.json');
  t.is(
    below.reduce((sum, { length }) => sum + length, 0),
    5 * MIB + 512,
  );
  const whole = readJson<MapEntry[]>(mountpoint, 'map.json');
  t.is(
    whole.reduce((sum, { length }) => sum + length, 0),
    DISK_SIZE,
  );
  t.deepEqual(held(whole)[0], [0, 2 * CLUSTER, 0]);
  t.is(held(whole)[1]?.[2], 1);
  const infoBelow = readJson<Record<string, unknown>>(mountpoint, 'layers/1-base.img/info.json');
  t.is(infoBelow.format, 'raw');
  t.is(infoBelow['virtual-size'], 5 * MIB + 512);
});

onBothSessions('stats.json counts what goes through the disk', async (t, session) => {
  const directory = workspace(t);
  const { mountpoint, disk } = await mount(t, session, [standAloneImage(directory)]);
  const stats = () => readJson<Record<string, number>>(mountpoint, 'stats.json');
  const before = stats();
  const fd = fs.openSync(disk, 'r+');
  fs.writeSync(fd, noise(8192, 1), 0, 8192, MIB);
  fs.fsyncSync(fd);
  fs.readSync(fd, Buffer.alloc(4096), 0, 4096, 2 * MIB);
  fs.closeSync(fd);
  const after = stats();
  const grown = (name: string) => (after[name] ?? 0) - (before[name] ?? 0);
  t.is(grown('wr_bytes'), 8192);
  t.true(grown('wr_operations') >= 1);
  t.true(grown('rd_bytes') >= 4096, 'the page cache may read ahead');
  t.true(grown('rd_operations') >= 1);
  t.true(grown('flush_operations') >= 1);
  t.is(after.wr_highest_offset, MIB + 8192);
  t.is(after.failed_wr_operations, 0);
});

onBothSessions('a text stays as it was when it was opened', async (t, session) => {
  const directory = workspace(t);
  const { mountpoint, disk } = await mount(t, session, [standAloneImage(directory)]);
  const file = path.join(mountpoint, 'stats.json');
  const first = fs.openSync(file, 'r');
  fs.writeFileSync(disk, noise(123_456, 1), { flag: 'r+' });
  const second = fs.openSync(file, 'r');
  const [old, fresh] = [first, second].map((fd) => JSON.parse(fs.readFileSync(fd, 'utf8')) as { wr_bytes: number });
  t.is(old?.wr_bytes, 0);
  t.is(fresh?.wr_bytes, 123_456);
  fs.closeSync(first);
  fs.closeSync(second);
});

onBothSessions('the size of a text is its length, and cat, cp and wc agree', async (t, session) => {
  const directory = workspace(t);
  const { image } = overlayImage(directory);
  const { mountpoint } = await mount(t, session, [image]);
  const copy = path.join(directory, 'copy');
  for (const name of ['info.json', 'layers/1-base.img/info.json', 'map.json']) {
    const file = path.join(mountpoint, name);
    const text = fs.readFileSync(file, 'utf8');
    if (name !== 'map.json') t.is(fs.statSync(file).size, text.length, name);
    await succeed(t, 'cp', [file, copy]);
    t.is(fs.readFileSync(copy, 'utf8'), text, name);
    t.is((await program('cat', [file])).stdout, text, name);
    t.is((await program('sh', ['-c', 'wc -c < "$1"', 'sh', file])).stdout.trim(), String(text.length), name);
  }
});

onBothSessions('a map of thousands of entries is complete', async (t, session) => {
  const directory = workspace(t);
  const image = path.join(directory, 'vm.qed');
  createImage('-f', 'qed', '-o', 'cluster_size=4096', image, '32M');
  const { mountpoint, disk } = await mount(t, session, [image]);
  const fd = fs.openSync(disk, 'r+');
  const content = noise(512, 1);
  for (let cluster = 0; cluster < 8192; cluster += 2) fs.writeSync(fd, content, 0, 512, cluster * 4096);
  fs.closeSync(fd);
  const entries = readJson<MapEntry[]>(mountpoint, 'map.json');
  t.is(entries.length, 8192);
  t.true(
    entries.every(
      ({ start, length, data }, index) => start === index * 4096 && length === 4096 && data === (index % 2 === 0),
    ),
  );
});
