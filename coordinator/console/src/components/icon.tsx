/** Drawn in the page, so that nothing is fetched for them. */

const PATHS = {
  alarms: "M12 3l9.500 17h-19zM12 10v4M12 17h.01",
  audit: "M7 3h8l4 4v14H7zM15 3v4h4M10 12h6M10 16h6",
  fleet: "M4 5h10v8H4zM2 17h14M17 8h4v12h-5v-3",
  keys: "M15 9a4 4 0 1 0-3.500 4L13 14.500h2v2h2v2h3v-3l-5.500-5.500",
  models: "M12 3l8 4.500v9L12 21l-8-4.500v-9zM4 7.500l8 4.500 8-4.500M12 12v9",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  people:
    "M9 11a3.500 3.500 0 1 0 0-7 3.500 3.500 0 0 0 0 7zM3 20c0-3.500 2.500-6 6-6s6 2.500 6 6M16 4.500a3.500 3.500 0 0 1 0 6M17.500 14.500c2 .8 3.500 2.800 3.500 5.500",
  playground: "M4 5h16v11H9l-5 4zM8 9h8M8 12h5",
  runs: "M4 19V5M4 19h16M7 15l4-5 3 3 5-7",
  serving: "M4 4h16v6H4zM4 14h16v6H4zM7 7h.01M7 17h.01M11 7h6M11 17h6",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name, size = 20 }: { name: IconName; size?: number }) {
  return (
    <svg
      width={size}
      height={size}
      viewBox="0 0 24 24"
      fill="none"
      stroke="currentColor"
      strokeWidth={name === "more" ? 3 : 1.7}
      strokeLinecap="round"
      strokeLinejoin="round"
      aria-hidden="true"
    >
      <path d={PATHS[name]} />
    </svg>
  );
}
