/** Parts of `qemu-img info` for people: the table of snapshots, and what a format says of itself. */
import { visible } from '../errors';
import type { InfoValue, SnapshotInfo } from '../formats/format';
import { humanSize } from '../units';

/** The lines of a snapshot table, with its head. */
export function snapshotLines(snapshots: readonly SnapshotInfo[]): string[] {
  const line = (id: string, tag: string, size: string, date: string, clock: string, icount: string) =>
    `${padBytes(id, 9)} ${padBytes(tag, 16)} ${size.padStart(8)}${date.padStart(20)}${clock.padStart(13)}${icount.padStart(11)}`;
  return [
    line('ID', 'TAG', 'VM SIZE', 'DATE', 'VM CLOCK', 'ICOUNT'),
    ...snapshots.map((snapshot) =>
      line(
        visible(snapshot.id),
        visible(snapshot.name),
        humanSize(snapshot['vm-state-size']),
        localTime(snapshot['date-sec']),
        clockText(snapshot['vm-clock-sec'], snapshot['vm-clock-nsec']),
        snapshot.icount === undefined ? '' : `${snapshot.icount}`,
      ),
    ),
  ];
}

/** The lines of what a format says of itself; words of a key are parted by spaces. */
export function specificLines(data: { [key: string]: InfoValue }, indent = 4): string[] {
  return Object.entries(data).flatMap(([key, value]) => valueLines(key.replaceAll('-', ' '), value, indent));
}

function valueLines(name: string, value: InfoValue, indent: number): string[] {
  const start = `${' '.repeat(indent)}${name}:`;
  if (Array.isArray(value)) {
    return [start, ...value.flatMap((item, index) => valueLines(`[${index}]`, item, indent + 4))];
  }
  if (typeof value === 'object') return [start, ...specificLines(value, indent + 4)];
  return [`${start} ${visible(String(value))}`];
}

/** Widths count bytes, as those of qemu-img do. */
function padBytes(text: string, width: number): string {
  return text + ' '.repeat(Math.max(0, width - Buffer.byteLength(text)));
}

function localTime(seconds: number): string {
  const date = new Date(seconds * 1000);
  const two = (value: number) => `${value}`.padStart(2, '0');
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

function clockText(seconds: number, nanoseconds: number): string {
  const two = (value: number) => `${Math.floor(value)}`.padStart(2, '0');
  const milliseconds = `${Math.floor(nanoseconds / 1_000_000)}`.padStart(3, '0');
  return `${two(seconds / 3600)}:${two((seconds / 60) % 60)}:${two(seconds % 60)}.${milliseconds}`;
}
